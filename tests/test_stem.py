"""The first convolution in other shapes is the same convolution."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.stem import STEMS, use_stem
from fastsimsiam.models.backbones import feature_extractor


@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
@pytest.mark.parametrize("shape", ["padded", "space-to-depth"])
def test_other_shapes_have_the_same_result(shape: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
    view = torch.randn(2, 3, *size).to(memory_format=torch.channels_last)

    def run() -> list[Tensor]:
        output = stem(view)
        loss = (output * output.detach().sigmoid()).sum()
        return [output, *torch.autograd.grad(loss, stem.weight)]

    expected = run()
    use_stem(stem, shape)
    assert type(stem) is STEMS[shape]
    for ours, theirs in zip(run(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_network_without_such_a_stem_is_refused() -> None:
    backbone, _ = feature_extractor("resnet18", "cifar")
    with pytest.raises(ValueError, match="space-to-depth needs stride 2"):
        use_stem(backbone, "space-to-depth")
    use_stem(backbone, "padded")
    with pytest.raises(ValueError, match="0 convolutions have three input channels"):
        use_stem(backbone, "padded")
