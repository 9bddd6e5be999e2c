"""The plan: distributions against torchvision's own samplers, and independence of everything."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms

from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.plan.batches import CenterPlan, TrainPlan
from fastsimsiam.plan.counter_rng import hash_words, keys, uniform
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.plan.views import ViewTable, center_boxes, draw_views

NUM = 20_000
# Seeds are fixed. At this level a fair sampler fails one of the hundred comparisons below in a
# hundred seeds; a wrong range, ratio or rounding fails at 1e-10 and beyond.
LEVEL = 1e-4


def table(spec: ViewSpec, size: tuple[int, int] = (375, 500), seed: int = 3) -> ViewTable:
    """Views of NUM images of one size."""
    sizes = np.tile(np.array([size], np.int32), (NUM, 1))
    return draw_views([spec, spec], seed=seed, epoch=1, index=np.arange(NUM), sizes=sizes)


def plan(num: int = 1000, **changes: object) -> TrainPlan:
    """A training plan over `num` images of 100 x 120 to 149 x 169 pixels."""
    sizes = np.stack([100 + np.arange(num) % 50, 120 + np.arange(num) % 50], 1).astype(np.int32)
    base = TrainPlan(
        label=np.arange(num) % 7,
        sizes=sizes,
        seed=5,
        specs=(ViewSpec(), ViewSpec()),
        image_size=64,
        batch_size=64,
    )
    return replace(base, **changes)


def test_uniform_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniform(keys(hash_words(1, 2, 3), np.arange(NUM)), np.arange(6))
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > LEVEL
    correlation = np.corrcoef(draws.T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / NUM**0.5
    neighbors = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert abs(neighbors) < 4 / NUM**0.5


@pytest.mark.parametrize("words", [(1, 2), (2, 1), (-1, 2), (1, 2, 0)])
def test_hash_words_tells_words_apart(words: tuple[int, ...]) -> None:
    assert (hash_words(*words) == hash_words(1, 2)) == (words == (1, 2))


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (40, 40), (20, 300), (300, 20), (1, 1)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    spec = ViewSpec()
    ours = table(spec, size).box[:, 0]
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(image, list(spec.area), list(spec.ratio))
            for _ in range(NUM // 4)
        ]
    )
    for column in range(4):
        if len(set(theirs[:, column])) == 1:
            assert set(ours[:, column]) == set(theirs[:, column])
        else:
            result = stats.ks_2samp(ours[:, column], theirs[:, column])
            assert result.pvalue > LEVEL, (size, column)
    top, left, height, width = ours.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height > 0).all()
    assert (width > 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def test_jitter_is_distributed_as_torchvisions() -> None:
    spec = ViewSpec(jitter=1.0)
    ours = table(spec)
    jitter = transforms.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    torch.manual_seed(0)
    theirs = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(NUM // 4)
    ]
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue"), start=1):
        drawn = getattr(ours, name)[:, 0]
        assert stats.ks_2samp(drawn, [params[column] for params in theirs]).pvalue > LEVEL, name
    permutations, counts = np.unique(ours.order[:, 0], axis=0, return_counts=True)
    assert len(permutations) == 24
    assert stats.chisquare(counts).pvalue > LEVEL


def test_probabilities_are_met() -> None:
    spec = ViewSpec(flip=0.5, jitter=0.8, grayscale=0.2, blur=0.3, solarize=0.1)
    drawn = table(spec)
    shares = {
        0.5: drawn.flip,
        0.8: drawn.brightness != 1,
        0.2: drawn.grayscale,
        0.3: drawn.blur_sigma > 0,
        0.1: drawn.solarize,
    }
    for probability, hit in shares.items():
        for view in range(2):
            test = stats.binomtest(int(hit[:, view].sum()), NUM, probability)
            assert test.pvalue > LEVEL, probability
    sigma = drawn.blur_sigma[drawn.blur_sigma > 0]
    assert stats.kstest(sigma, "uniform", args=(0.1, 1.9)).pvalue > LEVEL


def test_impossible_and_certain_draws() -> None:
    never = table(ViewSpec(flip=0, jitter=0, grayscale=0, blur=0))
    assert not never.flip.any()
    assert not never.grayscale.any()
    assert not never.blur_sigma.any()
    assert (never.brightness == 1).all()
    assert (never.hue == 0).all()
    always = table(ViewSpec(flip=1, grayscale=1, blur=1, solarize=1))
    assert always.flip.all()
    assert always.grayscale.all()
    assert always.solarize.all()
    assert (always.blur_sigma > 0).all()


def test_views_and_epochs_are_independent() -> None:
    drawn = table(ViewSpec(jitter=1.0))
    other = draw_views(
        [ViewSpec(jitter=1.0)],
        seed=3,
        epoch=2,
        index=np.arange(NUM),
        sizes=np.tile(np.array([[375, 500]], np.int32), (NUM, 1)),
    )
    for a, b in (
        (drawn.brightness[:, 0], drawn.brightness[:, 1]),
        (drawn.brightness[:, 0], drawn.contrast[:, 0]),
        (drawn.brightness[:, 0], other.brightness[:, 0]),
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / NUM**0.5


def test_a_view_does_not_depend_on_its_batch() -> None:
    sizes = np.tile(np.array([[375, 500]], np.int32), (100, 1))
    specs = [ViewSpec(), ViewSpec()]
    together = draw_views(specs, seed=1, epoch=2, index=np.arange(100), sizes=sizes)
    for row in (0, 17, 99):
        alone = draw_views(specs, seed=1, epoch=2, index=np.array([row]), sizes=sizes[:1])
        for name, value in (("box", alone.box), *alone.photometric().items()):
            np.testing.assert_array_equal(value[0], getattr(together, name)[row])


def test_unequal_views_need_nothing_special() -> None:
    """BYOL's pair, and SwAV's multi-crop 2x224 + 6x96."""
    swav = (ViewSpec(area=(0.14, 1)),) * 2 + (ViewSpec(size=96, area=(0.05, 0.14)),) * 6
    drawn = plan(specs=swav, image_size=224).batch(0, 0)
    assert drawn.views.box.shape == (64, 8, 4)
    assert plan(specs=swav, image_size=224).view_sizes == (224, 224) + (96,) * 6
    area = drawn.views.box[..., 2] * drawn.views.box[..., 3]
    assert area[:, 2:].mean() < area[:, :2].mean() / 3
    byol = (ViewSpec(blur=1.0), ViewSpec(blur=0.0, solarize=1.0))
    views = plan(specs=byol).batch(0, 0).views
    assert (views.blur_sigma[:, 0] > 0).all()
    assert not views.blur_sigma[:, 1].any()
    assert views.solarize[:, 1].all()
    assert not views.solarize[:, 0].any()


def test_views_are_those_of_earlier_versions() -> None:
    """A run that another version goes on with sees the same views; a thin image falls back."""
    sizes = np.array([(375, 500), (500, 375), (3, 2000), (90, 60), (1, 1)], np.int32)
    specs = [ViewSpec(), ViewSpec(area=(0.05, 0.3), solarize=0.5)]
    index = np.array([0, 5, 17, 400_000, 1_281_166])
    table = draw_views(specs, seed=7, epoch=3, index=index, sizes=sizes)
    assert table.box.tolist() == [
        [[41, 86, 319, 396], [0, 239, 239, 180]],
        [[86, 35, 405, 326], [280, 115, 169, 166]],
        [[0, 998, 3, 4], [0, 998, 3, 4]],
        [[12, 1, 58, 59], [52, 5, 34, 32]],
        [[0, 0, 1, 1], [0, 0, 1, 1]],
    ]
    # Second and fifth attempts at the first view's box.
    retried = draw_views(
        specs, seed=7, epoch=3, index=np.array([18, 19]), sizes=np.array([(200, 500)] * 2, np.int32)
    )
    assert retried.box.tolist() == [
        [[7, 188, 168, 154], [31, 57, 148, 165]],
        [[7, 113, 192, 198], [32, 121, 107, 125]],
    ]
    assert table.order[:2].tolist() == [[[1, 3, 0, 2], [1, 2, 0, 3]], [[0, 1, 3, 2], [1, 2, 0, 3]]]
    assert table.flip.tolist() == [[0, 0], [1, 0], [0, 1], [0, 1], [0, 0]]
    assert table.grayscale.tolist() == [[0, 0], [1, 0], [0, 0], [1, 0], [0, 0]]
    assert table.solarize.tolist() == [[0, 0], [0, 1], [0, 1], [0, 1], [0, 0]]
    np.testing.assert_allclose(
        table.hue[:3], [[0.04429, -0.02214], [-0.07669, 0.05647], [0.07336, -0.07601]], atol=1e-5
    )
    np.testing.assert_allclose(
        table.blur_sigma,
        [[1.20456, 0.93676], [0.39549, 0], [0, 0], [1.25726, 0], [0, 0]],
        atol=1e-5,
    )


def test_epoch_order_is_a_permutation_that_changes() -> None:
    first, second = epoch_order(1000, 0, 0), epoch_order(1000, 0, 1)
    assert sorted(first) == list(range(1000))
    assert (first != second).mean() > 0.99
    assert (first != epoch_order(1000, 1, 0)).mean() > 0.99
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_samples_of_a_step_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    whole = plan()
    ranks = [
        plan(batch_size=64 // world_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in (0, 3):
        expected = whole.batch(2, step)
        parts = [rank.batch(2, step) for rank in ranks]
        np.testing.assert_array_equal(np.concatenate([p.index for p in parts]), expected.index)
        np.testing.assert_array_equal(
            np.concatenate([p.views.box for p in parts]), expected.views.box
        )
    assert ranks[0].num_batches == whole.num_batches == 1000 // 64


def test_every_sample_once_but_for_the_dropped_rest() -> None:
    training = plan()
    seen = np.concatenate([training.batch(0, step).index for step in range(training.num_batches)])
    assert len(set(seen)) == len(seen) == 1000 // 64 * 64
    evaluation = CenterPlan(
        label=training.label, sizes=training.sizes, image_size=64, batch_size=64, fraction=0.875
    )
    batches = [evaluation.batch(0, step) for step in range(evaluation.num_batches)]
    np.testing.assert_array_equal(np.concatenate([b.index for b in batches]), np.arange(1000))


def test_accumulated_parts_fill_whole_steps() -> None:
    parts = plan(batch_size=16, round_to=4)
    assert parts.num_batches == 1000 // 64 * 4


def test_too_small_a_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="fewer than one batch of 64: lower --batch-size"):
        plan(num=63)


def test_center_boxes() -> None:
    sizes = np.array([[256, 256], [256, 512], [300, 200], [1, 1]], np.int32)
    np.testing.assert_array_equal(
        center_boxes(sizes, 0.875),
        [[16, 16, 224, 224], [16, 144, 224, 224], [62, 12, 175, 175], [0, 0, 1, 1]],
    )


def test_replacements_repeat() -> None:
    training = plan()
    one, two = training.replacement(1, 7, 0), training.replacement(1, 7, 0)
    assert one.index == two.index
    assert (one.views.box == two.views.box).all()
    assert training.replacement(1, 7, 1).index != one.index


def test_a_hundred_thousand_samples_a_second() -> None:
    training = plan(num=20_480, batch_size=512)
    training.batch(0, 0)
    best = min(_seconds(training) for _ in range(5))
    assert 10 * 512 / best > 100_000


def _seconds(training: TrainPlan) -> float:
    started = time.process_time()
    for step in range(10):
        training.batch(0, step)
    return time.process_time() - started
