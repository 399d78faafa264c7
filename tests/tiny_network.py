"""A network of four rows, for whole runs that take seconds."""

_DESCRIPTION = """
depth_multiple: 1.0
width_multiple: 1.0
anchors: {anchors}
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [[2], 1, Detect, [nc, anchors]]
"""


def describe(anchors: object) -> str:
    """Its YAML file, with one level of stride 8; ``anchors`` as a description may give them."""
    return _DESCRIPTION.format(anchors=anchors)
