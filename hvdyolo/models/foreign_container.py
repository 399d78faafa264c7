"""The two containers of ``torch.save``: a zip file, and before torch 1.6 pickles and bytes in a row."""

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import torch

from hvdyolo.models.foreign_pickle import StorageReference, read_pickle
from hvdyolo.utils.errors import DataError

_DTYPES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
}
_ZIP_MAGIC = b"PK\x03\x04"
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_VERSION = 1001


@dataclass(frozen=True)
class Storage:
    """Bytes of tensors: their ``key`` in the file, and ``length`` values of ``dtype``."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def bytes(self) -> int:
        return self.length * self.dtype.itemsize


class Container(Protocol):
    """What was saved, and the bytes of its tensors, read when they are asked for."""

    content: Any

    def storage(self, reference: StorageReference) -> Storage:
        """What ``reference`` refers to."""

    def read(self, storage: Storage) -> bytes:
        """Its bytes, as many as it says."""


def open_container(stream: BinaryIO, name: str) -> Container:
    """The container in ``stream``, which ``name`` names in messages.

    Raises:
        DataError: it is none, is damaged, or holds what weights have no use for.
    """
    is_zip = stream.read(4) == _ZIP_MAGIC
    stream.seek(0)
    return _ZipContainer(stream, name) if is_zip else _OldContainer(stream, name)


class _ZipContainer:
    """Entries ``<any>/data.pkl``, ``<any>/byteorder`` and ``<any>/data/<key>``."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._name = name
        try:
            self._archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            raise _damaged(name, "its directory is missing, as when a download was cut off") from None
        names = set(self._archive.namelist())
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DataError(f"{name} is a zip file that torch.save did not write; give a .pt file.")
        self._prefix = pickles[0].removesuffix("data.pkl")
        if f"{self._prefix}constants.pkl" in names:
            raise DataError(f"{name} is a TorchScript export; give the .pt file it was made from.")
        if f"{self._prefix}byteorder" in names and self._entry("byteorder") != b"little":
            raise DataError(f"{name} was written on a big-endian machine; save it again on another.")
        self.content = read_pickle(io.BytesIO(self._entry("data.pkl")), name).value

    def storage(self, reference: StorageReference) -> Storage:
        return _storage(reference, self._name)

    def read(self, storage: Storage) -> bytes:
        return self._entry(f"data/{storage.key}", storage.bytes)

    def _entry(self, name: str, length: int | None = None) -> bytes:
        try:
            entry = self._archive.getinfo(self._prefix + name)
            # A small file that unfolds into a large one is not from torch.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise DataError(f"{self._name} is refused: {name} is compressed, which torch never does.")
            if length is not None and entry.file_size != length:
                raise _damaged(self._name, f"{name} has {entry.file_size} bytes instead of {length}")
            return self._archive.read(entry)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError):
            raise _damaged(self._name, f"{name} is missing or does not fit its checksum") from None


class _OldContainer:
    """Five pickles, of which the last but one is the content and the last the keys; then each key's bytes."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._name = name
        self._stream = stream
        if self._next_magic() != _OLD_MAGIC:
            raise DataError(f"{name} is no file of torch.save, or is damaged; give a .pt file.")
        version, machine = (read_pickle(stream, name).value for _ in range(2))
        if version != _OLD_VERSION or not isinstance(machine, dict) or not machine.get("little_endian"):
            raise DataError(
                f"{name} is in a form of torch's old format that is not supported; save it again."
            )
        saved = read_pickle(stream, name)
        self.content = saved.value
        keys = read_pickle(stream, name).value
        self._places = self._find_storages(keys, [_storage(reference, name) for reference in saved.storages])

    def storage(self, reference: StorageReference) -> Storage:
        return _storage(reference, self._name)

    def read(self, storage: Storage) -> bytes:
        if storage not in self._places:
            raise _damaged(self._name, f"storage {storage.key} is missing")
        self._stream.seek(self._places[storage])
        return self._stream.read(storage.bytes)

    def _next_magic(self) -> Any:
        try:
            return read_pickle(self._stream, self._name).value
        except DataError:
            return None

    def _find_storages(self, keys: Any, storages: list[Storage]) -> dict[Storage, int]:
        """Where the bytes of each storage begin: behind its length, eight bytes, one after the other."""
        by_key = {storage.key: storage for storage in storages}
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in by_key for key in keys):
            raise _damaged(self._name, "its list of storages does not fit its tensors")
        position = self._stream.tell()
        end = self._stream.seek(0, io.SEEK_END)
        places: dict[Storage, int] = {}
        for key in keys:
            storage = by_key[key]
            self._stream.seek(position)
            length = self._stream.read(8)
            position += 8 + storage.bytes
            if position > end or struct.unpack("<q", length)[0] != storage.length:
                raise _damaged(self._name, f"storage {key} is cut off or of another length")
            places[storage] = position - storage.bytes
        return places


def _storage(reference: StorageReference, name: str) -> Storage:
    _, kind, key, _, length, *view = reference.arguments
    dtype = _DTYPES.get(getattr(kind, "origin", ""))
    if dtype is None or not isinstance(key, str) or type(length) is not int or view not in ([], [None]):
        raise _damaged(name, "a tensor's storage is of no known kind")
    if not 0 <= length < 1 << 48:
        raise _damaged(name, f"a storage of {length} values is impossible")
    return Storage(key, dtype, length)


def _damaged(name: str, reason: str) -> DataError:
    return DataError(f"{name} is damaged: {reason}; fetch the file again.")
