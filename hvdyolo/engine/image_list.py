"""The names of a source's images, on disk: one JSON string a line, in the order of their ids.

A source may have more names than a rank wants in its memory, so a rank reads the lines of its chunks only.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hvdyolo.utils.create_once import create_once


@dataclass(frozen=True)
class ImageList:
    """Where each chunk's names are in the file.

    Attributes:
        path: the file.
        offsets: (chunks + 1,) first byte of each chunk, and the file's length.
    """

    path: Path
    offsets: tuple[int, ...]

    def names(self, chunk: int) -> list[str]:
        """Names of the images of a chunk."""
        first, end = self.offsets[chunk : chunk + 2]
        with open(self.path, "rb") as stream:
            raw = os.pread(stream.fileno(), end - first, first)
        return [json.loads(line) for line in raw.splitlines()]


def encode_names(names: Iterable[str]) -> bytes:
    """The file's content. Escaped to ASCII: any name the file system allows survives, newlines too."""
    return b"".join(json.dumps(name).encode() + b"\n" for name in names)


def list_digest(content: bytes) -> str:
    """16 hexadecimal digits that tell one list from another."""
    return hashlib.sha256(content).hexdigest()[:16]


def list_name(content: bytes) -> str:
    """The file's name, which tells its content."""
    return f"images-{list_digest(content)}.jsonl"


def write_image_list(out: Path, content: bytes) -> None:
    """Write the list into ``out`` if it is not there."""
    path = out / list_name(content)
    if not path.exists():
        create_once(path, content)


def open_image_list(path: Path, content: bytes, chunk: int) -> ImageList:
    """The list at ``path``, whose content is at hand, for chunks of ``chunk`` images."""
    offsets, position = [], 0
    for number, line in enumerate(io.BytesIO(content)):
        if number % chunk == 0:
            offsets.append(position)
        position += len(line)
    return ImageList(path, (*offsets, position))
