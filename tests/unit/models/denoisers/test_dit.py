import pytest
import torch

from sfd_core.experiment.sizes import MODEL_SIZES, ModelSize
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import parameter_count

SMALL = ModelSize(depth=2, width=32, heads=2)


def test_xl2_on_f8_latents_is_the_published_network() -> None:
    with torch.device("meta"):
        model = DiT(MODEL_SIZES["XL"], in_channels=4, grid=32, patch=2, num_classes=1000)
    assert round(parameter_count(model) / 1e6, 1) == 675.1
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["final_layer.linear.weight"] == (32, 1152)
    assert shapes["blocks.0.mlp.fc1.weight"] == (4608, 1152)
    assert shapes["t_embedder.mlp.0.weight"] == (1152, 256)
    assert not any("norm" in name for name in shapes)


@pytest.mark.parametrize("patch", [1, 2])
def test_output_is_epsilon_and_variance_zero_at_the_start(patch: int) -> None:
    model = DiT(SMALL, in_channels=3, grid=4, patch=patch, num_classes=5)
    output = model(torch.randn(2, 3, 4, 4), torch.tensor([0, 999]), torch.tensor([0, 5]))
    assert output.shape == (2, 6, 4, 4)
    assert not output.any()


def test_every_trained_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = DiT(SMALL, in_channels=3, grid=4, patch=2, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    model(torch.randn(2, 3, 4, 4), torch.tensor([3.0, 500.0]), torch.tensor([0, 5])).square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and not value.grad.any()] == []
