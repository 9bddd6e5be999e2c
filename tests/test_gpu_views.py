"""The kernels that make views, on a GPU: they agree with torch and never wait for the device."""

import numpy as np
import pytest
import torch
from gpu_steps import NEEDS_GPU
from test_crop_kernels import assert_crops_are_those_of_products

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.views import Interpolation, ViewSpec
from fastsimsiam.loaders import device_crop
from fastsimsiam.loaders.base import ViewGroup
from fastsimsiam.plan.views import draw_views

pytestmark = NEEDS_GPU


def test_crop_kernels_make_the_crops_of_products() -> None:
    assert_crops_are_those_of_products(torch.device("cuda", 0))


@pytest.mark.parametrize(("frame", "side"), [((375, 500), 224), ((160, 160), 128), ((32, 32), 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_kernels_agree_at_real_sizes(
    interpolation: Interpolation, frame: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways on a GPU, and without waiting for it."""
    rng = np.random.default_rng(0)
    batch, (height, width) = 64, frame
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (batch * height * width, 3)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device="cuda", generator=generator)
    low = (max(1, height // 4), max(1, width // 4))
    extent = rng.integers(low, (height + 1, width + 1), (batch, 2, 2))
    corner = rng.integers(0, np.array(frame) - extent + 1)
    box = np.concatenate([corner, extent], axis=2).astype(np.int32)
    offset, widths = np.arange(batch) * height * width, np.full(batch, width)
    groups = [ViewGroup(side=side, views=[0, 1], interpolations=(interpolation,) * 2)]
    crops = {}
    torch.cuda.set_sync_debug_mode("error")
    try:
        for kernels in (True, False):
            monkeypatch.setattr(device_crop, "KERNELS", kernels)
            (crops[kernels],) = device_crop.crop_views(pixels, offset, widths, box, groups)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = (crops[True].short() - crops[False].short()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 2e-3


@pytest.mark.parametrize("side", [224, 96, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [True, False])
def test_fused_views_are_those_of_torch(side: int, dtype: torch.dtype, compiled: bool) -> None:
    specs = (
        ViewSpec(jitter=1.0),
        ViewSpec(hue=0.4, grayscale=0.5, grayscale_first=True, solarize=0.2),
    )
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (64, 2, side, side, 3)
    crops = torch.randint(0, 256, shape, device="cuda", dtype=torch.uint8, generator=generator)
    # Smooth, so that a blur leaves something.
    crops[:] = crops.float().mean((2, 3), keepdim=True) * 0.5 + crops * 0.3
    crops[:, :, side // 3 :] //= 2
    sizes = np.full((64, 2), side, np.int32)
    table = draw_views(specs, seed=0, epoch=0, index=np.arange(64), sizes=sizes)
    photometric = {n: torch.as_tensor(v).cuda() for n, v in table.photometric().items()}
    wanted = Photometric(specs, (side, side))((crops,), photometric)
    module = Photometric(specs, (side, side), dtype, fused=True)
    if compiled:
        torch._dynamo.reset()
        module.compile_alone()
    module((crops,), photometric)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = module((crops,), photometric)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    level = 1 / 255 / 0.224
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=torch.channels_last)
        # A level at the threshold of solarize; and the rounding of bfloat16.
        rounding = 2**-8 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(ours.float(), theirs, atol=1.6 * level, rtol=rounding)
        assert (ours.float() - theirs).abs().mean() < (0.1 + 80 * rounding) * level
