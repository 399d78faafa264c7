"""Reading pickles of other programs without running anything that is in them.

A pickle names classes and functions, and asks for them to be called. Here no name is ever looked up: each
becomes a :class:`StandIn` that remembers what it was called with. Names that published weights have no use
for are refused, so that a file which is meant to do harm is seen for what it is.
"""

import pickle
import pickletools
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, ClassVar

from hvdyolo.models.foreign_tuples import TupleSizes
from hvdyolo.utils.errors import DataError

# Packages whose classes, in published weights, hold nothing but attributes.
_PACKAGES = ("models.", "utils.", "torch.nn.modules.", "torch.nn.parallel.")

_STORAGES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_NUMPY = ("scalar", "_reconstruct")
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
_NAMES = frozenset(
    {
        "__builtin__.set",
        "builtins.set",
        "_codecs.encode",
        "argparse.Namespace",
        "numpy.dtype",
        "numpy.ndarray",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        *(f"torch.{kind}Storage" for kind in _STORAGES),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in _NUMPY),
        *(f"pathlib.{kind}" for kind in _PATHS),
    }
)

# Old ways to call things, and buffers whose length is allocated before it is read.
_REFUSED_OPCODES = frozenset(
    {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}
)
_LARGEST_TUPLE = 100_000
_MOST_BYTES = 64 << 20  # the largest published checkpoint's is under 2 MB


class StandIn:
    """Something of a class that was not looked up.

    Attributes:
        origin: the full name of the class or function.
        arguments: what it was called with.
        state: its attributes.
    """

    origin: ClassVar[str] = ""

    def __new__(cls, *arguments: Any, **keywords: Any) -> "StandIn":
        made = object.__new__(cls)
        made.arguments = arguments
        made.state = {}
        return made

    arguments: tuple[Any, ...]
    state: dict[Any, Any]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """``__new__`` has done all, as unpickling mostly calls that alone."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state


class StorageReference(StandIn):
    """A tensor's bytes elsewhere in the file; ``arguments`` tell where."""


@dataclass(frozen=True)
class Pickled:
    """What a pickle holds, and every storage it refers to."""

    value: Any
    storages: tuple[StorageReference, ...]


def read_pickle(stream: BinaryIO, name: str) -> Pickled:
    """The pickle at the position of ``stream``, which is left behind its end.

    Raises:
        DataError: it is damaged, or names something that weights have no use for; ``name`` is the file.
    """
    start = stream.tell()
    _check_opcodes(stream, name)
    length = stream.tell() - start
    stream.seek(start)
    reader = _Reader(BytesIO(stream.read(length)), name)
    return Pickled(reader.read(), tuple(reader.storages))


def _check_opcodes(stream: BinaryIO, name: str) -> None:
    """Walk through the pickle without building anything: memory is not taken for what it only claims."""
    start = stream.tell()
    sizes = TupleSizes()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name in _REFUSED_OPCODES:
                raise DataError(f"{name} is refused: its pickle uses {opcode.name}, as torch never does.")
            # A list of that length would be made; programs number what they keep from 0.
            if opcode.name.endswith("PUT") and not 0 <= int(argument or 0) <= count:
                raise DataError(f"{name} is refused: its pickle asks for memory that it does not use.")
            if sizes.follow(opcode, argument) > _LARGEST_TUPLE:
                raise DataError(f"{name} is refused: its pickle nests tuples beyond any use.")
            if stream.tell() - start > _MOST_BYTES:
                raise DataError(f"{name} is refused: its pickle is longer than {_MOST_BYTES} bytes.")
    except (ValueError, IndexError, OverflowError, MemoryError, UnicodeError):
        raise DataError(
            f"{name} is damaged: its pickle ends early or is none; fetch the file again."
        ) from None


class _Reader(pickle.Unpickler):
    """Builds plain containers and stand-ins, and nothing else."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages: list[StorageReference] = []
        self._name = name
        self._classes: dict[str, type[Any]] = {"collections.OrderedDict": OrderedDict}

    def read(self) -> Any:
        try:
            return self.load()
        except DataError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise DataError(f"{self._name} is damaged: its pickle cannot be followed ({reason}).") from None

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for the class or function, which is not imported."""
        origin = f"{module}.{name}"
        if origin not in self._classes:
            is_class = name.isidentifier() and name[0].isupper()  # no function, nor anything in a class
            if origin not in _NAMES and not (is_class and origin.startswith(_PACKAGES)):
                raise DataError(
                    f"{self._name} is refused: it asks for {origin[:100]!r}, which weights have no use for; "
                    "nothing in it was run, and the file should not be opened by other programs."
                )
            self._classes[origin] = type("StandIn", (StandIn,), {"origin": origin})
        return self._classes[origin]

    def persistent_load(self, pid: Any) -> Any:
        """What torch keeps outside the pickle: storages, and in old files the source of classes."""
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            self.storages.append(StorageReference(*pid))
            return self.storages[-1]
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        raise DataError(f"{self._name} is damaged: it refers to something that torch does not keep.")
