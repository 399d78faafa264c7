"""Distributed YOLOv5 training and offline batch detection with Horovod.

The front door of the library is four names: :func:`build_model`, :func:`load_model`, :func:`yolov5_loss` and
:class:`Detector`. They are resolved on first use, so that processes which need only a corner of the
package (the watchdog, the loader's workers) do not pay for importing all of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvdyolo.engine.detector import Detector
    from hvdyolo.models.build import build_model, load_model
    from hvdyolo.objective.yolov5 import yolov5_loss

__all__ = ["Detector", "__version__", "build_model", "load_model", "yolov5_loss"]
__version__ = "0.1.0"

_HOME = {
    "Detector": "hvdyolo.engine.detector",
    "build_model": "hvdyolo.models.build",
    "load_model": "hvdyolo.models.build",
    "yolov5_loss": "hvdyolo.objective.yolov5",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
