"""``data_tools/inspect.py``: what is in packed data, in figures and in pictures with boxes."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from hvdyolo.config import LoaderConfig
from hvdyolo.data.draw import draw_detections, draw_outlines
from hvdyolo.data.format import CROWD, DIFFICULT, TRUNCATED
from hvdyolo.data.images import decode
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.utils.errors import DataError, UsageError
from hvdyolo.utils.files import make_directory

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class _View:
    """Samples of one split that are looked at.

    Attributes:
        files: of the first and the last shard.
        samples: none in a shard whose images were all left out.
    """

    name: str
    split: PackedSplit
    files: Sequence[str]
    samples: range


def main(arguments: Sequence[str]) -> int:
    """The command line of ``data_tools/inspect.py``."""
    options = _parse(arguments)
    root, shard = (options.path.parent, options.path.name) if options.path.is_file() else (options.path, None)
    for view in _views(root, options.split, shard):
        for line in _describe(view):
            sys.stdout.write(line + "\n")
        if options.out is not None:
            make_directory(options.out)
            for path in draw_samples(view.split, view.samples, options.samples, options.out, view.name):
                sys.stdout.write(f"    {path}\n")
    return 0


def draw_samples(split: PackedSplit, samples: range, count: int, out: Path, prefix: str) -> list[Path]:
    """Save the first ``count`` of some samples with their boxes, one PNG each; returns their paths.

    Raises:
        DataError: a sample is damaged.
    """
    paths = []
    for index in samples[:count]:
        try:
            image = decode(split.read(index), LoaderConfig().max_pixels)
        except DataError as error:
            raise DataError(f"{split.name(index)} {error}") from None
        labels = split.labels(index)
        if split.outlined:
            image = draw_outlines(image, split.outlines(index), labels[:, 0].astype(np.int64))
        path = out / f"{prefix}-{index:06d}.png"
        draw_detections(
            image,
            label_corners(labels, image.shape[1], image.shape[0]),
            labels[:, 0].astype(np.int64),
            None,
            split.names,
            path,
        )
        paths.append(path)
    return paths


def label_corners(labels: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """(n, 5) labels to (n, 4) boxes x1, y1, x2, y2 in pixels."""
    centre, half = labels[:, 1:3], labels[:, 3:5] / 2
    return np.concatenate([centre - half, centre + half], 1) * np.array([width, height] * 2, dtype=np.float32)


def _views(root: Path, wanted: str | None, shard: str | None) -> Iterator[_View]:
    manifest = read_manifest(root)
    if wanted is not None and wanted not in manifest.splits:
        raise UsageError(f"--split: {root} has no split '{wanted}'; it has {', '.join(manifest.splits)}.")
    shards = {record.file for info in manifest.splits.values() for record in info.shards}
    if shard is not None and shard not in shards:
        raise UsageError(f"{root / shard} is not a shard of the packed dataset in {root}.")
    for name, info in manifest.splits.items():
        outlined = info.polygons is not None and info.polygons.polygons > 0
        first = 0
        for record in info.shards:
            samples = range(first, first + record.samples)
            if record.file == shard:
                yield _View(name, PackedSplit(root, name, outlines=outlined), [shard], samples)
            first += record.samples
        if shard is None and wanted in (None, name):
            files = sorted({info.shards[0].file, info.shards[-1].file})
            yield _View(name, PackedSplit(root, name, outlines=outlined), files, range(first))


def _describe(view: _View) -> Iterator[str]:
    split, files = view.split, " … ".join(view.files)
    if not view.samples:
        yield f"{view.name}: no images, {files}"
        yield f"  dataset {split.dataset_id}"
        return
    labels = np.concatenate([split.labels(index) for index in view.samples])
    flags = np.concatenate([split.flags(index) for index in view.samples])
    sizes = np.array([split.size(index) for index in view.samples])
    pixels = np.concatenate([split.labels(index)[:, 3:5] * split.size(index)[::-1] for index in view.samples])
    counts = np.array([len(split.labels(index)) for index in view.samples])
    yield f"{view.name}: {len(view.samples)} images, {len(labels)} boxes, {files}"
    yield f"  dataset {split.dataset_id}"
    yield f"  {'quantiles':20}" + "".join(f"{quantile:>9.0%}" for quantile in _QUANTILES)
    yield _quantiles("image width", sizes[:, 1])
    yield _quantiles("image height", sizes[:, 0])
    yield _quantiles("boxes an image", counts)
    if len(labels):
        yield _quantiles("box width, pixels", pixels[:, 0])
        yield _quantiles("box height, pixels", pixels[:, 1])
    yield f"  {'boxes by class':20}"
    for number, name in enumerate(split.names):
        yield f"    {name:18}{int((labels[:, 0] == number).sum()):>9}"
    marked = {"crowd": CROWD, "difficult": DIFFICULT, "truncated": TRUNCATED}
    told = [f"{int((flags & bit > 0).sum())} {name}" for name, bit in marked.items() if (flags & bit).any()]
    if told:
        yield f"  marked: {', '.join(told)}"
    if split.outlined:
        outlines = [outline for index in view.samples for outline in split.outlines(index) if outline]
        points = [len(polygon) for outline in outlines for polygon in outline]
        yield f"  outlines: {len(outlines)} objects, {len(points)} polygons of {sum(points)} points"


def _quantiles(what: str, values: NDArray[np.floating | np.integer]) -> str:
    return f"  {what:20}" + "".join(f"{value:>9.0f}" for value in np.quantile(values, _QUANTILES))


class Parser(argparse.ArgumentParser):
    """Raises its errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help.")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "inspect",
        description="Describe packed data, and draw samples.",
        epilog="With --augment it draws what training sees instead: see inspect --augment --help.",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, help="a packed dataset, or one of its shards")
    parser.add_argument("--split", help="this split only")
    parser.add_argument("--out", type=Path, help="folder for pictures with boxes")
    parser.add_argument("--samples", type=int, default=8, help="pictures a split or shard (default: 8)")
    options = parser.parse_args(arguments)
    if options.samples < 0:
        raise UsageError(f"--samples must not be negative, and is {options.samples}.")
    return options
