"""What is worth telling whoever made the labels."""

from dataclasses import dataclass

MEANINGS = {
    "unreadable row": "rows of labels that cannot be understood, left out; their images are kept",
    "unknown class": "rows of a class that has no name, left out; their images are kept",
    "degenerate": "boxes without width or height, left out",
    "outside": "boxes wholly outside their image, left out",
    "duplicate": "boxes that repeat another of the same image and class, left out",
    "clipped": "boxes that crossed the border, clipped to it",
    "tiny": "boxes of less than 2 pixels, kept",
    "mask": "outlines given as a mask of pixels (RLE), left out; their boxes are kept",
    "polygon": "polygons of fewer than three points or far outside, left out; their boxes are kept",
    "unreadable": "images that cannot be decoded or have too many pixels, left out",
    "damaged": "damaged images, of which some pixels are lost, left out",
    "unreadable labels": "images whose label file cannot be understood, left out",
    "missing labels": "listed images without an annotation file, left out",
    "ambiguous": "images named like another one but for the suffix, left out",
    "rotated": "images with an EXIF orientation",
    "resolution": "images of another size than their annotation says",
    "large": "images of more pixels than training takes by default, kept",
    "missing": "images without a label file, kept as background",
    "unlabelled": "images whose labels hold no box, kept as background",
    "orphan": "label files without an image, left out",
    "repeated": "images listed more than once, or in several splits",
}
"""Kinds of findings and what became of them, in the order of the report."""

LEFT_OUT = ("unreadable", "damaged")
"""Kinds by which an image is not in the packed data; they end a packing that was not told to go on."""

LOSSES = (
    "unreadable row",
    "unknown class",
    "degenerate",
    "outside",
    "duplicate",
    "polygon",
    *LEFT_OUT,
    "unreadable labels",
    "missing labels",
    "ambiguous",
    "orphan",
)
"""Kinds by which something of the source is not in the packed data."""


@dataclass(frozen=True)
class Finding:
    """Something an annotator may want to look at.

    Attributes:
        kind: a key of :data:`MEANINGS`.
        file: the annotation file, or the image where it is about that.
        line: in the annotation file; 0 where that means nothing.
        detail: figures, and which row or image of the file where no line tells.
    """

    kind: str
    file: str
    line: int
    detail: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.kind}: {self.detail}"
