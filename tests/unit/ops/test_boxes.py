import torch

from hvdyolo.ops.boxes import clip_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh


def test_layouts_by_hand() -> None:
    corners = torch.tensor([[[10.0, 20.0, 40.0, 30.0]]])
    middle = torch.tensor([[[25.0, 25.0, 30.0, 10.0]]])
    assert cxcywh_to_xyxy(middle).equal(corners)
    assert xyxy_to_cxcywh(corners).equal(middle)


def test_clip_knows_width_from_height() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 700.0, 500.0], [10.0, 20.0, 30.0, 40.0], [650.0, 490.0, 660.0, 495.0]])
    expected = torch.tensor(
        [[0.0, 0.0, 640.0, 480.0], [10.0, 20.0, 30.0, 40.0], [640.0, 480.0, 640.0, 480.0]]
    )
    assert clip_xyxy(boxes, height=480, width=640).equal(expected)
