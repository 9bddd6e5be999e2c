"""BatchNorm over groups of the batch against a loop over the groups, and against the formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.split_batch_norm import SplitBatchNorm1d, split_batch_norm

GROUPS = 4
SHAPES = ((12, 5, 3, 2), (8, 16, 1, 1), (8, 1, 4, 4), (20, 6), (8, 6, 5))
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def layer(shape: tuple[int, ...], **options: bool) -> nn.Module:
    """A split layer with weights that are neither 1 nor 0."""
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    split_batch_norm(norm, shape[0] // GROUPS)
    return norm


def some_input(
    shape: tuple[int, ...], layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Groups that differ in mean and spread."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    group = torch.arange(GROUPS).repeat_interleave(len(x) // GROUPS).view(-1, *[1] * (x.dim() - 1))
    x = x * (1 + group) + group
    return x.contiguous(memory_format=layout) if x.dim() == 4 else x


def by_loop(norm: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm of each group."""
    return torch.cat(
        [F.batch_norm(part, None, None, norm.weight, norm.bias, True) for part in x.chunk(GROUPS)]
    )


def gradients(output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Of a sum with weights that are all different."""
    weights = torch.sin(torch.arange(output.numel()).view(output.shape))
    return torch.autograd.grad((output * weights).sum(), tensors)


def eager(norm: nn.Module) -> nn.Module:
    return norm


def compiled(norm: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(norm, fullgraph=True, backend="aot_eager")


CASES = [(eager, shape, layout) for shape in SHAPES for layout in LAYOUTS]
CASES += [(compiled, SHAPES[0], LAYOUTS[1]), (compiled, SHAPES[3], LAYOUTS[0])]


@pytest.mark.parametrize(("wrap", "shape", "layout"), CASES)
def test_output_and_gradients_are_those_of_a_loop_over_groups(wrap, shape, layout) -> None:
    norm = layer(shape)
    x = some_input(shape, layout).requires_grad_()
    output, expected = wrap(norm)(x), by_loop(norm, x)
    torch.testing.assert_close(output, expected)
    of = (x, norm.weight, norm.bias)
    for ours, theirs in zip(gradients(output, *of), gradients(expected, *of), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    assert output.stride() == x.stride()
    assert gradients(wrap(norm)(x), x)[0].stride() == x.stride()


def test_eager_output_is_the_loop_s_to_the_bit() -> None:
    """In bfloat16 too: statistics are float32 there."""
    norm = layer(SHAPES[0])
    for dtype in (torch.float32, torch.bfloat16):
        x = some_input(SHAPES[0], torch.channels_last).to(dtype)
        assert torch.equal(norm(x), by_loop(norm, x))
        assert norm(x).dtype == dtype


def test_half_precision_has_statistics_in_float32_when_compiled() -> None:
    norm = layer(SHAPES[0])
    x = some_input(SHAPES[0], torch.channels_last).bfloat16()
    output = compiled(norm)(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, by_loop(norm, x), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("wrap", [eager, compiled])
def test_running_statistics_move_once_by_the_means_over_groups(wrap) -> None:
    x = some_input(SHAPES[0], torch.channels_last)
    norm = layer(SHAPES[0])
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(2.0)
    wrap(norm)(x)
    mean, var = torch.zeros(5), torch.zeros(5)
    for part in x.split(3):  # 18 values per channel and group
        for channel in range(5):
            values = part[:, channel].flatten()
            center = values.sum() / 18
            mean[channel] += center / 4
            var[channel] += ((values - center) ** 2).sum() / 17 / 4
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.5 + 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 * 2.0 + 0.1 * var)
    assert norm.num_batches_tracked == 1


def test_evaluation_and_state_are_those_of_batch_norm() -> None:
    norm, plain = layer(SHAPES[0]), nn.BatchNorm2d(5)
    norm(some_input(SHAPES[0]))
    assert list(norm.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(norm.state_dict())
    x = some_input(SHAPES[0])[:5]  # no multiple of the groups
    assert torch.equal(norm.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("wrap", [eager, compiled])
def test_without_scale_and_offset(wrap) -> None:
    norm = layer((20, 6), affine=False)
    x = some_input((20, 6)).requires_grad_()
    expected = by_loop(norm, x)
    torch.testing.assert_close(wrap(norm)(x), expected)
    torch.testing.assert_close(
        gradients(wrap(norm)(x), x)[0], gradients(expected, x)[0], atol=2e-5, rtol=1e-5
    )
    scaled = layer((20, 6))
    scaled.register_parameter("bias", None)
    torch.testing.assert_close(wrap(scaled)(x), by_loop(scaled, x))
    assert wrap(scaled)(x).requires_grad


def test_every_layer_of_a_network_is_replaced_and_keeps_its_values() -> None:
    torch.manual_seed(0)
    backbone, dim = feature_extractor("tiny_resnet")
    network = nn.Sequential(backbone, nn.Linear(dim, 8), nn.BatchNorm1d(8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    split_batch_norm(network, 2)
    kinds = [type(layer) for layer in network.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.BatchNorm1d not in kinds
    assert kinds.count(SplitBatchNorm1d) == 1
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    # A group does not see the others.
    x = torch.randn(4, 3, 32, 32)
    changed = x.clone()
    changed[3] += 1
    assert torch.equal(backbone(x)[:2], backbone(changed)[:2])
    assert not torch.allclose(backbone(x)[2], backbone(changed)[2])
