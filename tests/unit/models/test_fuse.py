import pytest
import torch
from torch import nn

from hvdyolo.models.build import build_model
from hvdyolo.models.fuse import fuse_batch_norms


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n-ghost", "yolov5n-bifpn", "yolov5n-transformer"])
def test_the_fused_copy_gives_the_same_boxes_and_the_model_stays(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 3).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training: no longer 0 and 1
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse_batch_norms(model)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    assert model.training, "the model goes on training"
    assert not fused.training
    with torch.inference_mode():
        expected = model.eval()(images)[0]
        found = fused(images)[0]
    assert torch.allclose(found, expected, rtol=1e-9)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert (fused.names, fused.image_size) == (model.names, model.image_size)
