"""Images of a source, checked and made ready for a shard."""

from collections.abc import Sequence
from dataclasses import dataclass

from hvdyolo.config import LoaderConfig
from hvdyolo.data.findings import Finding
from hvdyolo.data.format import MOST_PIXELS_A_SIDE
from hvdyolo.data.images import (
    UPRIGHT,
    DamagedImageError,
    ImageHeader,
    ImageTooLargeError,
    LoadedImage,
    OpenedImage,
    Pixels,
    encode_jpeg,
    open_image,
    resize,
)
from hvdyolo.data.lint import check_boxes, check_outlines
from hvdyolo.data.outlines import MOST_ENTRY, encode_outlines
from hvdyolo.data.pack_plan import PackSettings
from hvdyolo.data.sources.source import FAULTS_OF_THE_FILE, Labels, SourceImage, UnreadableLabelsError
from hvdyolo.data.writer import Sample
from hvdyolo.utils.errors import DataError, StorageError


@dataclass(frozen=True)
class PackedImage:
    """What became of an image.

    Attributes:
        sample: ``None``: it is left out.
        polygons: the sample's entry, if they are kept (:mod:`hvdyolo.data.outlines`).
    """

    sample: Sample | None
    polygons: bytes | None
    findings: list[Finding]
    source_bytes: int


def pack_images(
    labels: Labels, images: Sequence[SourceImage], sample_ids: Sequence[int], settings: PackSettings
) -> list[PackedImage]:
    """Decode, check, and shrink or turn images if need be.

    Step by step for all of them: the decoder drives everything else out of the caches, and a label
    file read after an image takes five times as long as after another label file.

    Raises:
        DataError: an image cannot be used; names it.
        StorageError: the file system fails.
    """
    opened = [_open(image, settings) for image in images]
    stored = [one if isinstance(one, PackedImage) else _store(labels, one, settings) for one in opened]
    return [
        one if isinstance(one, PackedImage) else _label(labels, one, sample_id, settings)
        for one, sample_id in zip(stored, sample_ids, strict=True)
    ]


@dataclass(frozen=True)
class _Opened:
    """An image whose bytes have been read, and their header."""

    source: SourceImage
    encoded: bytes
    image: OpenedImage


@dataclass(frozen=True)
class _Stored:
    """An image as it goes into the shard; ``source_…`` is what its labels refer to."""

    image: SourceImage
    encoded: bytes
    format: str
    width: int
    height: int
    source_width: int
    source_height: int
    source_bytes: int
    findings: list[Finding]


def _open(image: SourceImage, settings: PackSettings) -> _Opened | PackedImage:
    encoded = b""
    try:
        encoded = _read(image)
        return _Opened(image, encoded, open_image(encoded, settings.max_pixels))
    except DataError as error:
        return _left_out(image, error, len(encoded), settings)


def _store(labels: Labels, opened: _Opened, settings: PackSettings) -> _Stored | PackedImage:
    try:
        loaded = _load(opened.image, settings)
    except DataError as error:
        return _left_out(opened.source, error, len(opened.encoded), settings)
    try:
        return _stored(labels, opened, loaded, settings)
    except UnreadableLabelsError as error:
        return PackedImage(None, None, [error.finding], len(opened.encoded))


def _load(image: OpenedImage, settings: PackSettings) -> LoadedImage | None:
    """``None`` if it is certain to keep its bytes; it is checked all the same."""
    shrink = settings.max_side is not None and max(image.header.upright_size) > settings.max_side
    if shrink or image.header.exif_orientation != UPRIGHT:
        return image.load(whole=True)
    # A broken image is found here, not in the night's training.
    image.check()
    return None


def _left_out(image: SourceImage, error: DataError, source_bytes: int, settings: PackSettings) -> PackedImage:
    if not settings.skip_unreadable:
        cure = "raise --max-pixels" if isinstance(error, ImageTooLargeError) else "repair it"
        raise DataError(
            f"{image.path} {error}; {cure}, or leave such images out with --skip-unreadable."
        ) from None
    kind = "damaged" if isinstance(error, DamagedImageError) else "unreadable"
    return PackedImage(None, None, [Finding(kind, str(image.path), 0, str(error))], source_bytes)


def _label(labels: Labels, stored: _Stored, sample_id: int, settings: PackSettings) -> PackedImage:
    image = stored.image
    try:
        rows = labels.boxes(image, stored.source_width, stored.source_height)
    except UnreadableLabelsError as error:
        return PackedImage(None, None, [error.finding], stored.source_bytes)
    checked = check_boxes(image, rows, stored.source_width, stored.source_height)
    sample = Sample(
        encoded=stored.encoded,
        format=stored.format,
        width=stored.width,
        height=stored.height,
        source_width=stored.source_width,
        source_height=stored.source_height,
        labels=checked.labels,
        flags=checked.flags,
        name=image.name,
        sample_id=sample_id,
    )
    findings = [*stored.findings, *checked.findings]
    if not settings.polygons:
        return PackedImage(sample, None, findings, stored.source_bytes)
    outlines, found = check_outlines(image, checked.boxes)
    entry = encode_outlines(outlines, sample_id)
    if len(entry) > MOST_ENTRY:
        raise DataError(
            f"{image.annotation}: the polygons of {image.name} take {len(entry):,} bytes, and the most is "
            f"{MOST_ENTRY:,}; draw them with fewer points."
        )
    return PackedImage(sample, entry, [*findings, *found], stored.source_bytes)


def _read(image: SourceImage) -> bytes:
    try:
        return image.path.read_bytes()
    except OSError as error:
        if error.errno in FAULTS_OF_THE_FILE:
            raise DataError(f"cannot be read: {error.strerror}") from None
        # Not the image's fault: leaving it out would lose images whenever a file system has a bad day.
        raise StorageError(f"cannot read {image.path}: {error.strerror}.") from error


def _stored(labels: Labels, opened: _Opened, loaded: LoadedImage | None, settings: PackSettings) -> _Stored:
    image, header, encoded = opened.source, opened.image.header, opened.encoded
    stated = labels.stated_size(image)
    turn = _needs_turn(header, stated)
    width, height = header.upright_size if turn else (header.width, header.height)
    if max(width, height) > MOST_PIXELS_A_SIDE:
        raise DataError(
            f"{image.path} is {width} x {height} pixels, and a side may have {MOST_PIXELS_A_SIDE}; cut it."
        )
    findings = []
    if header.exif_orientation != UPRIGHT:
        done = "turned and encoded again" if turn else "its labels are of the image as stored, kept so"
        findings.append(
            Finding("rotated", str(image.path), 0, f"orientation {header.exif_orientation}, {done}")
        )
    if stated is not None and stated != (width, height):
        detail = f"{stated[0]} x {stated[1]} pixels, and {image.name} has {width} x {height}"
        findings.append(Finding("resolution", str(image.annotation), 0, detail))
    shrink = settings.max_side is not None and max(width, height) > settings.max_side
    if turn or shrink:
        assert loaded is not None
        pixels = loaded.pixels(upright=turn)
        if settings.max_side is not None:
            pixels = _shrink(pixels, settings.max_side)
        stored = encode_jpeg(pixels, settings.quality), "JPEG", pixels.shape[1], pixels.shape[0]
    else:
        stored = encoded, header.format, width, height
    if stored[2] * stored[3] > LoaderConfig().max_pixels:
        detail = f"{stored[2]} x {stored[3]} pixels; shrink with --imgsz, or raise loader.max_pixels"
        findings.append(Finding("large", str(image.path), 0, detail))
    return _Stored(image, *stored, width, height, len(encoded), findings)


def _needs_turn(header: ImageHeader, stated: tuple[int, int] | None) -> bool:
    """Whether to turn an image as its EXIF orientation says.

    Labels are nearly always of the upright image. Where the annotation's size is that of the image as
    stored and not that of the upright one, they were made by a tool that ignores the orientation.
    """
    as_stored = (header.width, header.height)
    return header.exif_orientation != UPRIGHT and (stated != as_stored or stated == header.upright_size)


def _shrink(pixels: Pixels, max_side: int) -> Pixels:
    height, width = pixels.shape[:2]
    if max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    return resize(pixels, max(round(width * scale), 1), max(round(height * scale), 1))
