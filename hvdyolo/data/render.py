"""How the pixels of an augmented sample are made from those of its source images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hvdyolo.data.opencv import require_opencv, warp_bilinear
from hvdyolo.data.placement import Homography, Matrix, Tile, View, uncovered
from hvdyolo.data.resizing import resize_triangle
from hvdyolo.ops.bilinear import resize_bilinear
from hvdyolo.ops.compiled import require_compiled
from hvdyolo.ops.letterbox import FILL

Pixels = NDArray[np.uint8]
Warp = Callable[[Pixels, Matrix, Pixels], None]
"""Fills its third argument (h, w, 3) with its first (H, W, 3), another array, under a matrix between them."""

Resampling = Literal["triangle", "bilinear", "exact"]


@dataclass(frozen=True)
class Renderer:
    """One way to resample.

    Attributes:
        view: of a homography, the canvas's side and the output's.
        resize: fills its second argument (h, w, 3) with its first (H, W, 3).
        warp: the second resampling, where there is one.
        shrinks: whether images of any size may be drawn; if not, none larger than the output.
    """

    view: Callable[[Homography, int, int], View]
    resize: Callable[[Pixels, Pixels], None]
    warp: Warp
    shrinks: bool

    def canvas(self, view: View, output: Pixels) -> Pixels:
        """Pixels of the view, whatever they are: ``output`` itself where it is the view."""
        return output if view.to_output is None else np.empty((view.height, view.width, 3), dtype=np.uint8)

    def draw(self, canvas: Pixels, image: Pixels, tile: Tile) -> None:
        """Resample the visible part of ``image`` into its place."""
        across, down = tile.across, tile.down
        self.resize(
            image[down.first : down.last, across.first : across.last],
            canvas[down.start : down.stop, across.start : across.stop],
        )

    def finish(self, canvas: Pixels, tiles: Sequence[Tile], view: View, output: Pixels) -> None:
        """Grey where none of ``tiles``, which were drawn, is; then from the view to the output."""
        for rows, columns in uncovered(tiles, view.height, view.width):
            canvas[rows, columns] = FILL
        if view.to_output is not None:
            self.warp(canvas, view.to_output, output)


def renderer(resampling: Resampling) -> Renderer:
    """The renderer of a setting.

    - ``triangle`` resamples each image once, whatever its size, anti-aliased, into its place in the output.
    - ``bilinear`` does so without anti-aliasing: an image of the network's size is shrunk to half at most.
    - ``exact`` does as published: images at the network's size on a canvas, and one warp of that.

    Raises:
        UsageError: it needs OpenCV or compiled functions, which are not there.
    """
    if resampling == "triangle":
        return Renderer(View.zoomed, resize_triangle, _warp_pillow, shrinks=True)
    require_opencv(f"augment.resampling {resampling}")
    if resampling == "bilinear":
        require_compiled("bilinear", "augment.resampling bilinear")
        return Renderer(View.zoomed, resize_bilinear, warp_bilinear, shrinks=False)
    return Renderer(View.unzoomed, resize_triangle, warp_bilinear, shrinks=False)


def _warp_pillow(image: Pixels, to_target: Matrix, target: Pixels) -> None:
    from_target = np.linalg.inv(to_target)
    coefficients = (from_target / from_target[2, 2]).ravel().tolist()
    affine = not to_target[2, :2].any()
    height, width = target.shape[:2]
    warped = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE,
        coefficients[: 6 if affine else 8],
        resample=Image.Resampling.BILINEAR,
        fillcolor=(FILL, FILL, FILL),
    )
    target[...] = np.asarray(warped)
