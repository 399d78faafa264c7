"""Which cells learn which box, and the loss.

:func:`yolov5_loss` is resolved on first use: the loader's workers need the assignment only.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvdyolo.objective.yolov5 import yolov5_loss

__all__ = ["yolov5_loss"]


def __getattr__(name: str) -> Any:
    if name != "yolov5_loss":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hvdyolo.objective.yolov5 import yolov5_loss

    return yolov5_loss
