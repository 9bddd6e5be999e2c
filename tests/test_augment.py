"""The photometric part against torchvision's PIL operations, and what must hold of a graph."""

import os
from dataclasses import replace
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
from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.views import IMAGENET_PIXELS, NormalizeConfig, ViewSpec
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


def levels(view: Tensor) -> Tensor:
    """A normalized view (N, 3, S, S) back in gray levels: (N, S, S, 3) in [0, 255]."""
    std, mean = torch.tensor(IMAGENET_PIXELS.std), torch.tensor(IMAGENET_PIXELS.mean)
    return (view.permute(0, 2, 3, 1) * std + mean) * 255


def apply(pictures: Tensor, table: ViewTable, spec: ViewSpec) -> Tensor:
    """Our operations, back in gray levels: (N, S, S, 3) in [0, 255]."""
    photometric = {name: torch.as_tensor(value) for name, value in table.photometric().items()}
    (view,) = Photometric([spec], (SIZE,))((pictures,), photometric)
    return levels(view)


def blank(num: int) -> ViewTable:
    """Parameters that change nothing."""
    return without_photometric(np.zeros((num, 1, 4), np.int32))


def difference(pictures: Tensor, table: ViewTable, spec: ViewSpec) -> float:
    """Mean absolute difference to PIL in gray levels."""
    ours = apply(pictures, table, spec)
    total = 0.0
    for row in range(len(pictures)):
        image = Image.fromarray(pictures[row, 0].numpy())
        first = spec.grayscale_first
        view = photometric_with_pil(image, table, row, 0, grayscale_first=first)
        theirs = torch.from_numpy(np.array(view))
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


# MoCo v1: grayscale before a jitter that is always there, with a strong hue.
MOCO_V1 = ViewSpec(jitter=1.0, hue=0.4, grayscale=0.5, grayscale_first=True, blur=0.0)
GRAY_LAST = replace(MOCO_V1, grayscale_first=False)


def in_the_order_of_pil(pictures: Tensor, specs: tuple[ViewSpec, ...]) -> list[float]:
    """Mean difference of each view of one size to PIL's, which follows torchvision's Compose."""
    num = len(pictures)
    sizes = np.full((num, 2), SIZE, np.int32)
    table = draw_views(specs, seed=0, epoch=0, index=np.arange(num), sizes=sizes)
    photometric = {name: torch.as_tensor(value) for name, value in table.photometric().items()}
    crops = pictures.expand(-1, len(specs), -1, -1, -1).contiguous()
    views = Photometric(specs, (SIZE,) * len(specs))((crops,), photometric)
    found = []
    for number, (spec, view) in enumerate(zip(specs, views, strict=True)):
        wanted = []
        for row, pixels in enumerate(pictures[:, 0].numpy()):
            image = Image.fromarray(pixels)
            if spec.grayscale_first and table.grayscale[row, number]:
                image = TF.to_grayscale(image, num_output_channels=3)
            steps = [
                (TF.adjust_brightness, table.brightness),
                (TF.adjust_contrast, table.contrast),
                (TF.adjust_saturation, table.saturation),
                (TF.adjust_hue, table.hue),
            ]
            for operation in table.order[row, number].tolist():
                adjust, factor = steps[operation]
                image = adjust(image, float(factor[row, number]))
            if not spec.grayscale_first and table.grayscale[row, number]:
                image = TF.to_grayscale(image, num_output_channels=3)
            if table.flip[row, number]:
                image = TF.hflip(image)
            wanted.append(np.asarray(image, np.float32))
        found.append((levels(view) - torch.from_numpy(np.stack(wanted))).abs().mean().item())
    return found


@pytest.mark.parametrize(
    "specs",
    [
        (MOCO_V1, MOCO_V1),
        (MOCO_V1, GRAY_LAST, replace(MOCO_V1, grayscale=0.0)),
        (GRAY_LAST, replace(GRAY_LAST, grayscale=0.0), MOCO_V1),
    ],
)
def test_grayscale_comes_before_jitter_where_a_view_says_so(
    pictures: Tensor, specs: tuple[ViewSpec, ...]
) -> None:
    found = in_the_order_of_pil(pictures, specs)
    print("gray levels:", found)
    assert max(found) < 2.0


def test_the_order_of_grayscale_and_jitter_shows(pictures: Tensor) -> None:
    table = blank(len(pictures))
    table.grayscale[:] = True
    table.hue[:] = 0.4
    assert difference(pictures, table, MOCO_V1) < 0.7
    assert (apply(pictures, table, MOCO_V1) - apply(pictures, table, GRAY_LAST)).abs().mean() > 1.0
    # A view that is never gray has no such operation in its graph.
    for first in (False, True):
        never = ViewSpec(grayscale=0.0, grayscale_first=first)
        untouched = blank(len(pictures))
        untouched.grayscale[:] = True
        result = apply(pictures, untouched, never)
        assert (result - pictures[:, 0].float()).abs().max() < 0.01


def test_the_networks_pixels_are_normalized_by_the_constants(pictures: Tensor) -> None:
    photometric = {
        name: torch.as_tensor(v) for name, v in blank(len(pictures)).photometric().items()
    }
    pixels = pictures[:, 0].permute(0, 3, 1, 2).float() / 255
    for mean, std in (((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((0.1, 0.2, 0.3), (2.0, 0.5, 0.25))):
        constants = NormalizeConfig(mean=mean, std=std)
        (view,) = Photometric([NO_COLOR], (SIZE,), normalize=constants)((pictures,), photometric)
        wanted = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(view.contiguous(), wanted, atol=1e-6, rtol=1e-6)


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
    std, mean = torch.tensor(IMAGENET_PIXELS.std), torch.tensor(IMAGENET_PIXELS.mean)
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


@pytest.mark.parametrize(
    "specs", [(ViewSpec(jitter=1.0, solarize=0.2),), (MOCO_V1, GRAY_LAST, NO_COLOR)]
)
def test_compiles_whole_and_once(pictures: Tensor, specs: tuple[ViewSpec, ...]) -> None:
    module = Photometric(specs, (SIZE,) * len(specs))
    crops = (pictures[:4].expand(-1, len(specs), -1, -1, -1).contiguous(),)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
    sizes = np.full((4, 2), SIZE, np.int32)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch in range(3):
            table = draw_views(specs, seed=0, epoch=epoch, index=np.arange(4), sizes=sizes)
            photometric = {name: torch.as_tensor(v) for name, v in table.photometric().items()}
            views, eager = compiled(crops, photometric), module(crops, photometric)
            torch.testing.assert_close(views, eager, atol=1e-4, rtol=0)
