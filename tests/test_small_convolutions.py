"""Convolutions by products are convolutions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastsimsiam.models import small_convolutions
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.small_convolutions import (
    SmallMapConv2d,
    keep_gradient_strides,
    use_matmul_for_small_maps,
)


def run(layer: nn.Module, image: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """The output, and the gradients of a loss that weighs every value differently."""
    image = image.clone().requires_grad_()
    output = layer(image)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weight).sum().backward()
    return output.detach(), image.grad, [parameter.grad for parameter in layer.parameters()]


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (7, 2, 3), ((3, 1), (2, 1), (1, 0)), (5, 3, 4)],
)
def test_the_product_is_the_convolution(
    side: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 4, kernel, stride, padding, dtype=torch.float64)
    plain = plain.to(memory_format=torch.channels_last)
    ours = nn.Sequential(copy.deepcopy(plain))
    use_matmul_for_small_maps(ours)
    image = torch.randn(3, 6, side, side + 1, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SmallMapConv2d, "largest_map", 100)
        found = run(ours, image)
    wanted = run(plain, image)
    torch.testing.assert_close(found, wanted)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_a_network_keeps_its_state_and_its_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, _ = feature_extractor("resnet18")
    image = torch.randn(2, 3, 64, 64)
    for parameter in network.parameters():
        if parameter.dim() == 1:  # some scales begin at zero, which would hide what they scale
            nn.init.uniform_(parameter)
    wanted, state = network(image), network.state_dict()
    seen: list[int] = []
    original = small_convolutions.conv_by_matmul

    def counted(*arguments: Tensor | tuple[int, int]) -> Tensor:
        size = arguments[-1]
        assert isinstance(size, tuple)
        seen.append(size[0])
        result: Tensor = original(*arguments)  # type: ignore[arg-type]
        return result

    monkeypatch.setattr(small_convolutions, "conv_by_matmul", counted)
    use_matmul_for_small_maps(network)
    torch.testing.assert_close(network(image), wanted, atol=1e-4, rtol=1e-3)
    assert network.state_dict().keys() == state.keys()
    # The last stage: four convolutions of 3x3 and the shortcut.
    assert seen == [2] * 5


def test_what_is_no_plain_convolution_is_left_alone() -> None:
    odd = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Conv2d(4, 4, 3, dilation=2),
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.ConvTranspose2d(4, 4, 3),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        ]
    )
    use_matmul_for_small_maps(odd)
    assert not any(isinstance(layer, SmallMapConv2d) for layer in odd)


def test_gradients_of_several_views_have_the_strides_of_their_weights() -> None:
    """And are not copied for it, which would cost what DistributedDataParallel warns of."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False)).to(memory_format=torch.channels_last)
    use_matmul_for_small_maps(layer)
    weight, image = layer[0].weight, torch.randn(3, 6, 2, 2)

    def gradient() -> Tensor:
        weight.grad = None
        (layer(image).square().sum() + layer(2 * image).square().sum()).backward()
        assert weight.grad is not None
        return weight.grad

    without = gradient().clone()
    assert without.stride() != weight.stride()
    keep_gradient_strides(layer)
    seen: list[int] = []
    weight.register_hook(lambda grad: seen.append(grad.data_ptr()))
    kept = gradient()
    assert kept.stride() == weight.stride()
    assert torch.equal(kept, without)
    assert kept.data_ptr() == seen[0]


def test_frozen_weights_have_no_gradients_to_keep() -> None:
    layer = nn.Sequential(nn.Conv2d(6, 4, 1)).requires_grad_(False)
    use_matmul_for_small_maps(layer)
    keep_gradient_strides(layer)
