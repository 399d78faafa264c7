"""Everything that knows Horovod, MPI or the launcher."""
