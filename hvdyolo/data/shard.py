"""Opening a shard: everything in it but the images, checked before it is believed."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.format import DATASETS, SCHEMA, VERSION
from hvdyolo.data.writer import ShardRecord, digest_outside
from hvdyolo.utils.errors import DataError


@dataclass(frozen=True)
class Shard:
    """What a shard holds besides its images; array layouts are those of docs/shard_format.md."""

    path: Path
    data_offset: int
    index: NDArray[np.void]
    labels: NDArray[np.float32]
    label_flags: NDArray[np.uint8]
    label_ptr: NDArray[np.int64]
    names: bytes
    name_ptr: NDArray[np.int64]


def read_shard(root: Path, record: ShardRecord, classes: int) -> Shard:
    """Open, check, read and close.

    The bytes outside ``/data`` are compared with the manifest by plain reads first: damaged metadata can make
    the HDF5 library hang. The images are checked one by one as they are used.

    Raises:
        DataError: the file is missing, damaged, or holds what a shard must not.
    """
    path = root / record.file
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise DataError(f"{path} has {size} bytes and should have {record.bytes}; copy it again.")
        if digest_outside(path, record.data_offset, record.data_bytes) != record.digest:
            raise DataError(f"{path} is damaged; copy it again or pack the dataset again.")
        with h5py.File(path, "r") as file:
            return _read(file, path, record, classes)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _read(file: h5py.File, path: Path, record: ShardRecord, classes: int) -> Shard:
    _check_structure(file, path, record)
    data: int = file["data"].id.get_offset() or 0  # an empty dataset has no place
    shard = Shard(
        path=path,
        data_offset=data,
        index=file["index"][()],
        labels=file["labels"][()],
        label_flags=file["label_flags"][()],
        label_ptr=file["label_ptr"][()].astype(np.int64),
        names=file["names"][()].tobytes(),
        name_ptr=file["name_ptr"][()].astype(np.int64),
    )
    _check_content(shard, record, classes)
    return shard


def _check_structure(file: h5py.File, path: Path, record: ShardRecord) -> None:
    """Refuse anything but plain contiguous datasets of the known names, types and bounded sizes."""
    attributes = {name: file.attrs.get(name) for name in ("schema", "version", "complete", "samples")}
    wanted = {"schema": SCHEMA, "version": VERSION, "complete": 1, "samples": record.samples}
    if attributes != wanted:
        raise DataError(f"{path} is not a complete shard of this format; pack the dataset again.")
    if set(file) != set(DATASETS):
        raise DataError(f"{path} holds {sorted(file)} and should hold {sorted(DATASETS)}.")
    shapes = {
        "data": (record.data_bytes,),
        "index": (record.samples,),
        "labels": (record.boxes, 5),
        "label_flags": (record.boxes,),
        "label_ptr": (record.samples + 1,),
        "name_ptr": (record.samples + 1,),
    }
    for name, dtype in DATASETS.items():
        # Links first: following one is what must not happen.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: /{name} is a link to somewhere else, which a shard must not hold.")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype != dtype:
            raise DataError(f"{path}: /{name} has another type than {dtype}.")
        properties = dataset.id.get_create_plist()
        if (
            dataset.is_virtual
            or properties.get_external_count()
            or properties.get_nfilters()
            or properties.get_layout() != h5py.h5d.CONTIGUOUS
        ):
            raise DataError(f"{path}: /{name} is not stored in one plain piece in this file.")
        if dataset.shape != shapes.get(name, dataset.shape) or dataset.nbytes > record.bytes:
            raise DataError(
                f"{path}: /{name} has the shape {dataset.shape}, which does not fit the manifest."
            )


def _check_content(shard: Shard, record: ShardRecord, classes: int) -> None:
    ends = shard.index["offset"].astype(np.uint64) + shard.index["length"]
    sound = (
        (ends <= record.data_bytes).all()
        and _is_partition(shard.label_ptr, len(shard.labels))
        and _is_partition(shard.name_ptr, len(shard.names))
        and np.isfinite(shard.labels).all()
        and (shard.labels[:, 0] >= 0).all()
        and (shard.labels[:, 0] < classes).all()
    )
    if not sound:
        raise DataError(f"{shard.path} points outside its own data or has labels out of range.")


def _is_partition(pointers: NDArray[np.int64], total: int) -> bool:
    return bool(pointers[0] == 0 and pointers[-1] == total and (np.diff(pointers) >= 0).all())
