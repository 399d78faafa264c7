"""The folder that a dataset is written into: refused if it is another's, and never half a dataset.

What is unfinished lies in a folder of its own, until the manifest makes the rest a dataset.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hvdyolo.data.format import MANIFEST_NAME
from hvdyolo.utils.errors import MismatchError
from hvdyolo.utils.files import make_directory

WORK = ".packing"


def claim_output(out: Path) -> list[Path]:
    """Make ``out`` and the folder of unfinished work in it.

    Returns:
        The folders above that one that were not there before, the innermost first.

    Raises:
        MismatchError: there is something else.
        StorageError: nothing can be written there.
    """
    if out.is_dir() and any(out.iterdir()):
        if (out / MANIFEST_NAME).exists():
            raise MismatchError(f"{out} already holds a packed dataset; give another --out or remove it.")
        if not (out / WORK).is_dir():
            raise MismatchError(f"{out} is not empty and no unfinished packing; give another --out.")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    make_directory(out)
    make_directory(out / WORK)
    for leftover in out.glob(".*.tmp"):  # of a report or manifest whose writing was killed
        leftover.unlink(missing_ok=True)
    return made


def abandon_output(out: Path, made: Sequence[Path]) -> None:
    """Leave no trace of a packing that did not begin; ``made`` is what :func:`claim_output` returned."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    with suppress(OSError):  # somebody else put something there
        for folder in made:
            folder.rmdir()
