"""The ways a command can end, each with the exit code that pipelines and batch scripts rely on.

The message of every error here is one sentence that tells the user what to do; the command line prints
it without a traceback.
"""


class HvdyoloError(Exception):
    """Base of every error that is explained rather than traced.

    ``agreed`` tells that every rank raises this error at the same point, so the job can end in order; any
    other error of one rank must end the others by force.
    """

    exit_code = 70
    agreed = False


class UsageError(HvdyoloError):
    """Wrong usage or configuration: names the key, what is valid and the nearest match."""

    exit_code = 2


class DataError(HvdyoloError):
    """Bad input data: names the shard, record or file."""

    exit_code = 65


class InternalError(HvdyoloError):
    """An internal failure, or ranks that disagree."""

    exit_code = 70


class StorageError(HvdyoloError):
    """Input or output failed (no space, no permission): names the path and the free bytes."""

    exit_code = 74


class Preempted(HvdyoloError):
    """Stopped early on purpose, all ranks at the same step; the same command resumes."""

    exit_code = 75
    agreed = True


class MismatchError(HvdyoloError):
    """This run, output or checkpoint belongs to another configuration, dataset or weights."""

    exit_code = 78
