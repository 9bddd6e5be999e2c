"""The photometric part against torchvision's PIL operations, and what must hold of a graph."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import open_with_pil, textured_image
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from benchmarks.augment import half_products
from fastsimsiam.augment import photometric as photometric_module
from fastsimsiam.augment.blur import blur_by_products, blur_by_shifts, gaussian_weights
from fastsimsiam.augment.photometric import IMAGENET_MEAN, IMAGENET_STD, Photometric
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.loaders.reference_loader import photometric_with_pil
from fastsimsiam.plan.views import ViewTable, draw_views, without_photometric
from fastsimsiam.system.compiler import why_compile_fails

SIZE = 96
NO_COLOR = ViewSpec(flip=0, jitter=0, grayscale=0, blur=0)


@pytest.fixture(scope="module")
def pictures(photos_or_textures: list[Image.Image]) -> Tensor:
    """(N, 1, S, S, 3) uint8 crops of photographs."""
    return torch.stack([torch.from_numpy(np.array(image)) for image in photos_or_textures])[:, None]


@pytest.fixture(scope="module")
def photos_or_textures(request: pytest.FixtureRequest) -> list[Image.Image]:
    """16 photographs, or images of random structure where there are none."""
    if not os.environ.get("FASTSIMSIAM_TEST_DATA"):
        rng = np.random.default_rng(0)
        return [textured_image(rng, SIZE, SIZE) for _ in range(16)]
    root: Path = request.getfixturevalue("photos")
    paths = sorted(root.rglob("*.JPEG"))[::12][:16]
    return [open_with_pil(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for path in paths]


def apply(pictures: Tensor, table: ViewTable, spec: ViewSpec) -> Tensor:
    """Our operations, back in gray levels: (N, S, S, 3) in [0, 255]."""
    photometric = {name: torch.as_tensor(value) for name, value in table.photometric().items()}
    (view,) = Photometric([spec], (SIZE,))((pictures,), photometric)
    std, mean = torch.tensor(IMAGENET_STD), torch.tensor(IMAGENET_MEAN)
    return (view.permute(0, 2, 3, 1) * std + mean) * 255


def blank(num: int) -> ViewTable:
    """Parameters that change nothing."""
    return without_photometric(np.zeros((num, 1, 4), np.int32))


def difference(pictures: Tensor, table: ViewTable, spec: ViewSpec) -> float:
    """Mean absolute difference to PIL in gray levels."""
    ours = apply(pictures, table, spec)
    total = 0.0
    for row in range(len(pictures)):
        image = Image.fromarray(pictures[row, 0].numpy())
        theirs = torch.from_numpy(np.array(photometric_with_pil(image, table, row, 0)))
        total += (ours[row] - theirs.float()).abs().mean().item()
    return total / len(pictures)


# Gray levels. PIL truncates to 8 bits after every operation (half a level on average) and holds hue
# in 8 bits; its blur is three box filters.
@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("brightness", 0.6, 0.5),
        ("brightness", 1.4, 0.5),
        ("contrast", 0.6, 0.5),
        ("contrast", 1.4, 0.5),
        ("saturation", 0.6, 0.5),
        ("saturation", 1.4, 0.5),
        ("hue", -0.1, 0.7),
        ("hue", 0.05, 0.7),
        ("hue", 0.1, 0.7),
        ("hue", 0.5, 0.7),
        ("grayscale", True, 0.3),
        ("solarize", True, 0.01),
        ("flip", True, 0.01),
        ("blur_sigma", 0.1, 0.01),
        ("blur_sigma", 0.5, 0.7),
        ("blur_sigma", 1.0, 0.7),
        ("blur_sigma", 2.0, 0.7),
    ],
)
def test_each_operation_is_pils(pictures: Tensor, name: str, value: float, limit: float) -> None:
    table = blank(len(pictures))
    getattr(table, name)[:] = value
    found = difference(pictures, table, ViewSpec(solarize=1.0))
    print(f"{name} {value}: {found:.3f} gray levels")
    assert found < limit
    # The comparison can fail: the untouched image is far away (a slight blur aside).
    if (name, value) not in (("blur_sigma", 0.1), ("hue", 0.05)):
        original = pictures[:, 0].float()
        assert (apply(pictures, table, ViewSpec(solarize=1.0)) - original).abs().mean() > 1.0


def test_nothing_asked_nothing_done(pictures: Tensor) -> None:
    result = apply(pictures, blank(len(pictures)), ViewSpec())
    assert (result - pictures[:, 0].float()).abs().max() < 0.01


def test_whole_recipe_in_every_order(pictures: Tensor) -> None:
    num = len(pictures)
    spec = ViewSpec(jitter=1.0, blur=0.5, grayscale=0.2)
    sizes = np.full((num, 2), SIZE, np.int32)
    found = []
    for seed in range(6):
        table = draw_views([spec], seed=seed, epoch=0, index=np.arange(num), sizes=sizes)
        found.append(difference(pictures, table, spec))
    print(f"whole recipe: {np.mean(found):.3f} gray levels")
    assert np.mean(found) < 1.5


def test_order_matters_and_is_per_sample(pictures: Tensor) -> None:
    table = blank(2)
    table.brightness[:] = 1.4
    table.contrast[:] = 0.6
    table.order[1] = [[1, 0, 2, 3]]
    same = pictures[:1].expand(2, -1, -1, -1, -1)
    result = apply(same, table, ViewSpec())
    assert (result[0] - result[1]).abs().mean() > 0.5
    for row in range(2):
        theirs = photometric_with_pil(Image.fromarray(same[row, 0].numpy()), table, row, 0)
        assert (result[row] - torch.from_numpy(np.array(theirs)).float()).abs().mean() < 1.0


def test_both_blurs_are_the_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 20, 31, generator=generator)
    sigma = torch.tensor([0.0, 0.7, 2.0])
    weight = gaussian_weights(sigma, 6)
    shifts, products = blur_by_shifts(image, weight), blur_by_products(image, weight)
    torch.testing.assert_close(shifts, products, atol=1e-5, rtol=0)
    torch.testing.assert_close(shifts[0], image[0])
    # A quarter of a gray level; what the network gets is rounded to bfloat16, a whole one.
    torch.testing.assert_close(half_products(image, weight), shifts, atol=1e-3, rtol=0)
    expected = TF.gaussian_blur(image[2], [13, 13], [2.0, 2.0])
    # torchvision reflects at the edges where PIL, and we, repeat: compare what lies inside.
    torch.testing.assert_close(shifts[2][:, 7:-7, 7:-7], expected[:, 7:-7, 7:-7], atol=1e-5, rtol=0)


def test_a_sample_does_not_depend_on_its_batch(pictures: Tensor) -> None:
    spec = ViewSpec(jitter=1.0)
    sizes = np.full((len(pictures), 2), SIZE, np.int32)
    table = draw_views([spec], seed=0, epoch=0, index=np.arange(len(pictures)), sizes=sizes)
    together = apply(pictures, table, spec)
    alone = apply(pictures[3:4], table.row(3), spec)
    torch.testing.assert_close(alone[0], together[3], atol=1e-3, rtol=0)


def test_views_of_several_sizes_come_out_in_order() -> None:
    specs = [ViewSpec(size=8), ViewSpec(), ViewSpec(size=8)]
    crops = (
        torch.randint(0, 256, (4, 2, 8, 8, 3), dtype=torch.uint8),
        torch.randint(0, 256, (4, 1, 16, 16, 3), dtype=torch.uint8),
    )
    table = without_photometric(np.zeros((4, 3, 4), np.int32))
    photometric = {name: torch.as_tensor(value) for name, value in table.photometric().items()}
    views = Photometric(specs, (8, 16, 8), torch.bfloat16)(crops, photometric)
    assert [tuple(view.shape) for view in views] == [(4, 3, 8, 8), (4, 3, 16, 16), (4, 3, 8, 8)]
    assert all(view.dtype == torch.bfloat16 for view in views)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)
    exact = Photometric(specs, (8, 16, 8))(crops, photometric)
    std, mean = torch.tensor(IMAGENET_STD), torch.tensor(IMAGENET_MEAN)
    back = (exact[2].permute(0, 2, 3, 1) * std + mean) * 255
    torch.testing.assert_close(back, crops[0][:, 1].float(), atol=1e-2, rtol=0)


@pytest.mark.skipif(why_compile_fails("cpu") is not None, reason="cannot compile for a CPU")
def test_compiled_alone_it_gives_the_same_from_one_compilation() -> None:
    specs = (ViewSpec(jitter=1.0, solarize=0.5), ViewSpec(size=16, blur=0.0), ViewSpec())
    rng = np.random.default_rng(0)
    alone = Photometric(specs, (40, 16, 40), torch.bfloat16)
    eager = Photometric(specs, (40, 16, 40), torch.bfloat16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    alone.compile_alone()
    with patch.object(photometric_module, "_CPU_PIECE_PIXELS", 1 << 14):  # several pieces
        for epoch in range(2):
            crops = tuple(
                torch.as_tensor(rng.integers(0, 256, (14, views, side, side, 3), dtype=np.uint8))
                for views, side in ((2, 40), (1, 16))
            )
            table = draw_views(
                specs,
                seed=0,
                epoch=epoch,
                index=np.arange(14),
                sizes=np.full((14, 2), 50, np.int32),
            )
            photometric = {name: torch.as_tensor(v) for name, v in table.photometric().items()}
            with torch._dynamo.config.patch(error_on_recompile=epoch > 0):
                views = alone(crops, photometric)
            for ours, wanted in zip(views, eager(crops, photometric), strict=True):
                assert ours.is_contiguous(memory_format=torch.channels_last)
                # An ulp of bfloat16, here and there: a compiler contracts products and sums.
                torch.testing.assert_close(ours, wanted, atol=0.04, rtol=0)
                assert (ours != wanted).float().mean() < 0.02
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each size


def test_compiles_whole_and_once(pictures: Tensor) -> None:
    spec = ViewSpec(jitter=1.0, solarize=0.2)
    module = Photometric([spec], (SIZE,))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
    sizes = np.full((len(pictures), 2), SIZE, np.int32)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch in range(3):
            table = draw_views(
                [spec], seed=0, epoch=epoch, index=np.arange(len(pictures)), sizes=sizes
            )
            photometric = {name: torch.as_tensor(v) for name, v in table.photometric().items()}
            (ours,) = compiled((pictures,), photometric)
            (eager,) = module((pictures,), photometric)
            torch.testing.assert_close(ours, eager, atol=1e-4, rtol=0)
