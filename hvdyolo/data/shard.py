"""Opening a shard: everything in it but the images, checked before it is believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.format import (
    DATASETS,
    MOST_ATTRIBUTE_BYTES,
    NUMBER_ATTRIBUTES,
    SCHEMA,
    TEXT_ATTRIBUTES,
    VERSION,
)
from hvdyolo.data.writer import ShardRecord, digest_outside
from hvdyolo.utils.errors import DataError, HvdyoloError, StorageError

# Labels are clipped in double precision and stored in single.
_ROUNDING = 1e-6
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Shard:
    """What a shard holds besides its images, a read-only array for each column of its index.

    Attributes:
        starts: (n,) where in the file each image starts.
        sizes: (n, 2) height, width of the stored image.
        source_sizes: (n, 2) the same of the image before packing shrank it.
        labels: (m, 5); those of sample i are rows ``label_ptr[i]`` to ``label_ptr[i + 1]``.
        names: UTF-8; that of sample i lies between ``name_ptr[i]`` and ``name_ptr[i + 1]``.
    """

    path: Path
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: NDArray[np.uint64]
    sizes: NDArray[np.int32]
    source_sizes: NDArray[np.int32]
    sample_ids: NDArray[np.int64]
    codecs: NDArray[np.uint8]
    labels: NDArray[np.float32]
    label_flags: NDArray[np.uint8]
    label_ptr: NDArray[np.int64]
    names: bytes
    name_ptr: NDArray[np.int64]

    def fill_rows(self, rows: NDArray[np.void]) -> None:
        """Set what ``rows``, one a sample, have of ``/index``, but for where images lie."""
        rows["length"] = self.lengths
        rows["checksum"] = self.checksums
        rows["height"], rows["width"] = self.sizes.T
        rows["source_height"], rows["source_width"] = self.source_sizes.T
        rows["sample_id"] = self.sample_ids
        rows["codec"] = self.codecs

    def name(self, row: int) -> str:
        """Name of a sample's source file."""
        raw = self.names[self.name_ptr.item(row) : self.name_ptr.item(row + 1)]
        return raw.decode(errors="surrogateescape")

    def describe(self, row: int) -> str:
        """Which sample it is, for messages."""
        return f"{self.path}: sample {row} ({self.name(row)})"


def read_shard(root: Path, record: ShardRecord, classes: int) -> Shard:
    """Open, check, read and close.

    The bytes outside ``/data`` are compared with the manifest by plain reads first: damaged metadata can make
    the HDF5 library hang. The images are checked one by one as they are used.

    Raises:
        DataError: the file is missing, damaged, or holds what a shard must not.
        StorageError: it cannot be read for another reason.
    """
    path = root / record.file
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise DataError(f"{path} has {size} bytes and should have {record.bytes}; copy it again.")
        if digest_outside(path, record.data_offset, record.data_bytes) != record.digest:
            raise DataError(f"{path} is damaged; copy it again or pack the dataset again.")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; copy it again or pack the dataset again.") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}.") from None
    try:
        # Locking fails on many parallel file systems; a finished shard never changes.
        with h5py.File(path, "r", locking=False) as file:
            _check_attributes(file, path, record)
            _check_structure(file, path, record)
            columns = {name: file[name][()] for name in DATASETS if name != "data"}
            check_columns(columns, path, record, classes)
            return _shard(columns, path, record)
    except (HvdyoloError, MemoryError):
        raise
    except Exception as error:
        # h5py raises anything, and its messages are the library's own calls.
        raise DataError(f"{path} is not a shard of this format ({type(error).__name__}).") from error


def _check_attributes(file: h5py.File, path: Path, record: ShardRecord) -> None:
    names = {*TEXT_ATTRIBUTES, *NUMBER_ATTRIBUTES}
    if set(file.attrs) != names:
        raise DataError(f"{path} has the attributes {sorted(file.attrs)} and should have {sorted(names)}.")
    values: dict[str, Any] = {}
    for name in names:
        attribute = file.attrs.get_id(name)
        kind = "S" if name in TEXT_ATTRIBUTES else "i"
        if (
            attribute.shape != ()
            or attribute.dtype.kind != kind
            or attribute.get_storage_size() > MOST_ATTRIBUTE_BYTES
        ):
            raise DataError(f"{path}: the attribute {name} is of another type than it should be.")
        values[name] = file.attrs[name]
    wanted = {"schema": SCHEMA.encode(), "version": VERSION, "complete": 1, "samples": record.samples}
    for name, value in wanted.items():
        if values[name] != value:
            raise DataError(f"{path}: {name} is {values[name]} and should be {value}; pack the data again.")


def _check_structure(file: h5py.File, path: Path, record: ShardRecord) -> None:
    """Refuse anything but plain contiguous datasets of the known names, types and bounded sizes."""
    if set(file) != set(DATASETS):
        raise DataError(f"{path} holds {sorted(file)} and should hold {sorted(DATASETS)}.")
    # Links first, of all: following one is what must not happen.
    for name in DATASETS:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: /{name} is a link to somewhere else, which a shard must not hold.")
    shapes = {
        "data": (record.data_bytes,),
        "index": (record.samples,),
        "labels": (record.boxes, 5),
        "label_flags": (record.boxes,),
        "label_ptr": (record.samples + 1,),
        "name_ptr": (record.samples + 1,),
    }
    for name, dtype in DATASETS.items():
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{path}: /{name} is not a dataset.")
        properties = dataset.id.get_create_plist()
        if (
            properties.get_layout() != h5py.h5d.CONTIGUOUS
            or properties.get_external_count()
            or properties.get_nfilters()
        ):
            raise DataError(f"{path}: /{name} is not stored in one plain piece in this file.")
        if dataset.dtype != dtype:
            raise DataError(f"{path}: /{name} has another type than {dtype}.")
        if dataset.shape != shapes.get(name, dataset.shape) or dataset.ndim != (2 if name == "labels" else 1):
            raise DataError(
                f"{path}: /{name} has the shape {dataset.shape}, which does not fit the manifest."
            )
        if dataset.nbytes and (dataset.id.get_offset() or record.bytes) + dataset.nbytes > record.bytes:
            raise DataError(f"{path}: /{name} of {dataset.nbytes} bytes lies outside the file.")
    if (file["data"].id.get_offset() or 0) != record.data_offset:
        raise DataError(f"{path}: /data is not where the manifest says.")


def check_columns(columns: Mapping[str, NDArray[Any]], path: Path, record: ShardRecord, classes: int) -> None:
    """Check the datasets of a shard, without ``data``, which are of the right types and shapes.

    Raises:
        DataError: they contradict the manifest, each other or themselves; names ``path``.
    """
    _check_index(columns["index"], path, record)
    for what, total in (("label_ptr", len(columns["labels"])), ("name_ptr", len(columns["names"]))):
        pointers = columns[what]
        if pointers[0] != 0 or pointers[-1] != total or (pointers[1:] < pointers[:-1]).any():
            raise DataError(f"{path}: /{what} does not rise from 0 to {total}.")
    labels = columns["labels"]
    if not _are_sound(labels, classes):
        row = next(row for row in range(len(labels)) if not _are_sound(labels[row : row + 1], classes))
        sample = int(np.searchsorted(columns["label_ptr"], row, side="right")) - 1
        raise DataError(
            f"{_shard(columns, path, record).describe(sample)} has a label out of range: "
            f"{labels[row].tolist()} with {classes} classes."
        )


def _check_index(index: NDArray[np.void], path: Path, record: ShardRecord) -> None:
    """Images lie back to back, so a sample can neither hide bytes nor point at another's."""
    ends = np.cumsum(index["length"], dtype=np.uint64)
    starts = ends - index["length"]
    if not np.array_equal(starts, index["offset"]) or (ends[-1:] != record.data_bytes).any():
        raise DataError(f"{path}: /index does not divide /data into samples.")
    for name in ("length", "width", "height", "source_width", "source_height"):
        if (index[name] == 0).any():
            raise DataError(f"{path}: /index has a sample whose {name} is 0.")


def _are_sound(labels: NDArray[np.float32], classes: int) -> bool:
    """Whether all of some labels are; by extremes, which take a tenth of the time of a look at each."""
    if not len(labels):
        return True
    lows, highs = _extremes(np.minimum, labels), _extremes(np.maximum, labels)
    numbers = labels[:, 0]
    # Comparisons with what is no number are false, and extremes are none where a value is none.
    return bool(
        lows[0] >= 0
        and highs[0] < classes
        and (lows[1:] >= -_ROUNDING).all()
        and (highs[1:] <= 1 + _ROUNDING).all()
        and np.array_equal(numbers, np.floor(numbers))
    )


def _extremes(extreme: np.ufunc, labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each column; many rows at once, for numpy takes a step a row and five numbers are no vector."""
    whole = len(labels) // _ROWS_AT_ONCE * _ROWS_AT_ONCE
    rows = extreme.reduce(labels[:whole].reshape(-1, 5 * _ROWS_AT_ONCE), axis=0) if whole else labels[:1]
    found: NDArray[np.float32] = extreme.reduce(np.concatenate([rows.reshape(-1, 5), labels[whole:]]), axis=0)
    return found


def _shard(columns: Mapping[str, NDArray[Any]], path: Path, record: ShardRecord) -> Shard:
    index = columns["index"]
    return Shard(
        path=path,
        starts=_column(index["offset"] + np.uint64(record.data_offset), np.int64),
        lengths=_column(index["length"], np.int64),
        checksums=_column(index["checksum"], np.uint64),
        sizes=_column(np.stack([index["height"], index["width"]], 1), np.int32),
        source_sizes=_column(np.stack([index["source_height"], index["source_width"]], 1), np.int32),
        sample_ids=_column(index["sample_id"], np.int64),
        codecs=_column(index["codec"], np.uint8),
        labels=_column(columns["labels"], np.float32),
        label_flags=_column(columns["label_flags"], np.uint8),
        label_ptr=_column(columns["label_ptr"], np.int64),
        names=columns["names"].tobytes(),
        name_ptr=_column(columns["name_ptr"], np.int64),
    )


def _column(values: Any, dtype: type[np.generic]) -> NDArray[Any]:
    column = np.ascontiguousarray(values, dtype=dtype)
    column.flags.writeable = False  # handed out as views
    return column
