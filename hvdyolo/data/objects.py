"""What is to be found in a picture while it is being made: classes and boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of a square picture."""

    classes: NDArray[np.float32]
    """(n,)."""
    boxes_xyxy: NDArray[np.floating]
    """(n, 4) in pixels."""

    @staticmethod
    def joined(parts: "Sequence[Objects]") -> "Objects":
        """All objects of some pictures on one."""
        if not parts:
            return Objects(np.empty(0, dtype=np.float32), np.empty((0, 4)))
        return Objects(
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.boxes_xyxy for part in parts]),
        )

    def kept(self, keep: NDArray[np.bool_]) -> "Objects":
        """Those of which ``keep`` (n,) is true."""
        return Objects(self.classes[keep], self.boxes_xyxy[keep])

    def labels(self, size: int) -> NDArray[np.float32]:
        """(n, 5): class, cx, cy, w, h in 0..1 of a picture of that size."""
        boxes = self.boxes_xyxy / size
        labels = np.empty((len(boxes), 5), dtype=np.float32)
        labels[:, 0] = self.classes
        labels[:, 1:3] = (boxes[:, :2] + boxes[:, 2:]) / 2
        labels[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
        return labels
