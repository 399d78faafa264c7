"""``hvdyolo slurm``: the batch scripts, for those who have the wheel only."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from hvdyolo.utils.errors import MismatchError
from hvdyolo.utils.files import make_directory, storage_errors


def copy_batch_scripts(directory: Path) -> list[Path]:
    """Copy the batch scripts into ``directory``; returns where they are.

    Raises:
        MismatchError: one of them is there already: a site may have edited it.
    """
    make_directory(directory)
    copied = []
    with as_file(files("hvdyolo") / "slurm_scripts") as scripts:
        sources = sorted(path for path in scripts.iterdir() if path.suffix in (".sh", ".md"))
        present = [path.name for path in sources if (directory / path.name).exists()]
        if present:
            raise MismatchError(
                f"{directory} already has {', '.join(present)}; give another directory or move them."
            )
        for source in sources:
            with storage_errors(directory / source.name):
                copied.append(Path(shutil.copy(source, directory)))
    return copied
