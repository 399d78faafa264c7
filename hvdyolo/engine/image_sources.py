"""Where the images of a batch detection come from: a directory, a list of files, or packed data."""

import bisect
import copy
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from hvdyolo.data.format import MANIFEST_NAME
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.parts import ErrorCode
from hvdyolo.utils.errors import DataError, StorageError, UsageError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class BadImageError(Exception):
    """One image cannot be used; it is recorded and the others go on."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(detail)
        self.code: ErrorCode = code
        self.detail = detail


@dataclass(frozen=True)
class StoredImage:
    """An image as it is stored.

    Attributes:
        encoded: content of an image file.
        source_size: height and width, pixels, that boxes refer to; those of the stored image if ``None``.
    """

    encoded: bytes
    source_size: tuple[int, int] | None

    @property
    def upright(self) -> bool:
        """It has been turned as its EXIF orientation says; packing does that."""
        return self.source_size is not None


class ImageSource(Protocol):
    """Images by number and name. Only the rank that plans calls ``list_names``: it may be slow."""

    @property
    def identity(self) -> str:
        """What the names do not tell about the images."""

    def list_names(self) -> Sequence[str]:
        """Names of all images; an image's id is its place here."""

    def read(self, index: int, name: str) -> StoredImage:
        """The image with id ``index``, whose name is at hand.

        Raises:
            BadImageError: this image cannot be read, and will not be the next time either.
            StorageError: reading failed in a way that says nothing about the image.
        """


def open_source(path: Path) -> ImageSource:
    """The images that ``--source`` means.

    A directory with a manifest is packed data, all its splits; ``PACKED_DIR/SPLIT`` is one of them.

    Raises:
        UsageError: there is nothing at ``path``.
        StorageError: it cannot be read.
    """
    if (path / MANIFEST_NAME).is_file():
        return PackedImages(path, tuple(read_manifest(path).splits))
    if path.is_dir():
        return DirectoryImages(path)
    if path.is_file():
        return ListedImages(path)
    if (path.parent / MANIFEST_NAME).is_file():
        splits = tuple(read_manifest(path.parent).splits)
        if path.name in splits:
            return PackedImages(path.parent, (path.name,))
        raise UsageError(f"{path.parent} has no split '{path.name}'; it has {', '.join(splits)}.")
    raise UsageError(
        f"--source {path} does not exist; give a directory of images, a list of image files or packed data."
    )


class DirectoryImages:
    """Every image below a directory, sorted by name; hidden files and directories are left out."""

    identity = "files"

    def __init__(self, root: Path) -> None:
        self._root = root

    def list_names(self) -> Sequence[str]:
        """Paths below the directory, with ``/``."""
        return sorted(_image_names(str(self._root), "", ()))

    def read(self, index: int, name: str) -> StoredImage:
        """See :class:`ImageSource`."""
        return StoredImage(_read_file(self._root / name), None)


class ListedImages:
    """The files a text file lists, one a line, relative to the directory the text file is in."""

    identity = "files"

    def __init__(self, path: Path) -> None:
        self._path = path

    def list_names(self) -> Sequence[str]:
        """The lines as they stand, without empty ones."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror}.") from error
        if any("\0" in line for line in lines):
            raise UsageError(
                f"--source {self._path} is not a list of image files; to detect on one image, "
                "give its directory or a list that names it."
            )
        return [stripped for line in lines if (stripped := line.strip("\r"))]

    def read(self, index: int, name: str) -> StoredImage:
        """See :class:`ImageSource`."""
        return StoredImage(_read_file(self._path.parent / name), None)


class PackedImages:
    """The images of packed data, split after split; boxes refer to the images before packing."""

    def __init__(self, root: Path, splits: Sequence[str]) -> None:
        manifest = read_manifest(root)
        self.identity = f"packed {manifest.dataset_id}"
        self._splits = [split for split in splits if manifest.splits[split].samples]
        self._packed = [PackedSplit(root, split) for split in self._splits]
        self._ends = list(accumulate(map(len, self._packed)))
        self._local = threading.local()

    def list_names(self) -> Sequence[str]:
        """``SPLIT/NAME``: a name may be in several splits."""
        return [
            f"{split}/{packed.name(index)}"
            for split, packed in zip(self._splits, self._packed, strict=True)
            for index in range(len(packed))
        ]

    def read(self, index: int, name: str) -> StoredImage:
        """See :class:`ImageSource`."""
        number = bisect.bisect_right(self._ends, index)
        packed = self._of_this_thread()[number]
        local = index - self._ends[number] + len(packed)
        try:
            return StoredImage(packed.read(local), packed.source_size(local))
        except DataError as error:
            raise BadImageError("checksum", str(error)) from error
        except OSError as error:
            raise StorageError(f"cannot read {name} in packed data: {error.strerror}.") from error

    def _of_this_thread(self) -> list[PackedSplit]:
        # With files of its own: one that another thread closed could be another shard's by now.
        if not hasattr(self._local, "packed"):
            self._local.packed = [copy.copy(packed) for packed in self._packed]
        packed: list[PackedSplit] = self._local.packed
        return packed


def _image_names(directory: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Names of images below ``directory``, each beginning with ``prefix``.

    Links are followed, as data sets on clusters are often made of them, but not to a directory ``above``.
    """
    try:
        status = Path(directory).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from _image_names(entry.path, f"{prefix}{entry.name}/", (*above, here))
                elif entry.name.lower().endswith(_IMAGE_SUFFIXES):
                    yield prefix + entry.name
    except OSError as error:
        raise StorageError(f"cannot read {directory}: {error.strerror}.") from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise BadImageError("missing", reason) from None
        if error.errno in (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise BadImageError("unreadable", reason) from None
        # Not the image's fault as far as one can tell, and a record would be there for good: a storage
        # that comes back would have cost detections.
        raise StorageError(f"cannot read {path}: {reason}.") from error
