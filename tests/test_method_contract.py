"""What every method owes the trainer, and what SimSiam in particular must do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastsimsiam.config.methods import (
    BYOLConfig,
    BYOLNoMomentumConfig,
    MoCoConfig,
    MoCoV3Config,
    SimCLRConfig,
    SimSiamConfig,
    SupConConfig,
    SwAVConfig,
    VISimSiamConfig,
)
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.byol import BYOL, BYOLNoMomentum
from fastsimsiam.methods.losses import negative_cosine_similarity
from fastsimsiam.methods.moco import MoCo
from fastsimsiam.methods.moco_v3 import MoCoV3
from fastsimsiam.methods.simclr import SimCLR
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.methods.supcon import SupCon
from fastsimsiam.methods.swav import SwAV
from fastsimsiam.methods.vi_simsiam import VISimSiam

LABELS = torch.arange(8)
SMALL = {"projector_layers": 2, "projector_dim": 24, "predictor_dim": 8}


def backbone() -> nn.Sequential:
    """A small network with BatchNorm, images to 12 features."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def simsiam(**switches: object) -> SimSiam:
    """A small SimSiam with fixed weights."""
    torch.manual_seed(0)
    return SimSiam(backbone(), 12, SimSiamConfig(**(SMALL | switches)))


def seeded(make: Callable[[], Method]) -> Callable[[], Method]:
    """The same weights at each call."""

    def made() -> Method:
        torch.manual_seed(0)
        return make()

    return made


def moco(**options: object) -> MoCo:
    """A small MoCo with fixed weights."""
    torch.manual_seed(0)
    small = {"projection_dim": 8, "queue_size": 20, "bn_group_size": 4}
    return MoCo(backbone(), 12, MoCoConfig(**(small | options)))


def some_views(num: int = 2) -> tuple[Tensor, ...]:
    """Views of eight images."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(8, 3, 16, 16, generator=generator) for _ in range(num))


NARROW = {"hidden_dim": 24, "projection_dim": 8}
METHODS: dict[str, Callable[[], Method]] = {
    "byol": seeded(lambda: BYOL(backbone(), 12, BYOLConfig(**NARROW))),
    "byol-no-momentum": seeded(
        lambda: BYOLNoMomentum(backbone(), 12, BYOLNoMomentumConfig(**NARROW))
    ),
    "moco-v1": lambda: moco(projector_layers=1),
    "moco-v2": moco,
    "moco-v2-symmetric": lambda: moco(symmetric="sum"),
    "moco-v3": seeded(lambda: MoCoV3(backbone(), 12, MoCoV3Config(**NARROW))),
    "simclr": seeded(lambda: SimCLR(backbone(), 12, SimCLRConfig(projection_dim=8))),
    "simsiam": simsiam,
    "no-stop-gradient": lambda: simsiam(stop_gradient=False),
    "no-predictor": lambda: simsiam(predictor="none"),
    "fixed-predictor": lambda: simsiam(predictor="fixed"),
    "asymmetric": lambda: simsiam(symmetric=False),
    "hidden-bn": lambda: simsiam(projector_output_bn=False),
    "supcon": seeded(lambda: SupCon(backbone(), 12, SupConConfig(projection_dim=8))),
    "swav": seeded(
        lambda: SwAV(backbone(), 12, SwAVConfig(prototypes=20, queue_size=24, **NARROW))
    ),
    "vi-simsiam": seeded(lambda: VISimSiam(backbone(), 12, VISimSiamConfig(**SMALL))),
    "vi-simsiam-fixed": seeded(
        lambda: VISimSiam(backbone(), 12, VISimSiamConfig(kappa=9.0, **SMALL))
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str) -> None:
    method = METHODS[name]()
    loss, metrics = method(some_views(), LABELS)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert all(not value.requires_grad and value.shape == () for value in metrics.values())
    loss.backward()
    grouped = [p for group in method.parameter_groups() for p in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {p for p in method.parameters() if p.requires_grad}
    # The encoder is trained; what gets no gradient would be a dead weight of the optimizer.
    assert all(p.grad is not None for p in grouped if p.requires_grad)
    assert method.backbone(some_views()[0]).shape == (8, 12)


@pytest.mark.parametrize("name", METHODS)
def test_contract_compiles_whole(name: str) -> None:
    torch._dynamo.reset()
    method = METHODS[name]()
    expected, _ = METHODS[name]()(some_views(), LABELS)
    loss, _ = torch.compile(method, fullgraph=True, backend="aot_eager")(some_views(), LABELS)
    torch.testing.assert_close(loss, expected)


def manual(method: SimSiam, views: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Z and p of each view, by hand."""
    z = [method.projector(method.backbone(view)) for view in views]
    return z, [method.predictor(projection) for projection in z]


def test_loss_is_the_papers_equation() -> None:
    loss, _ = simsiam()(some_views(), LABELS)
    method = simsiam()
    z, p = manual(method, some_views())
    expected = (
        negative_cosine_similarity(p[0], z[1].detach())
        + negative_cosine_similarity(p[1], z[0].detach())
    ) / 2
    torch.testing.assert_close(loss, expected)
    one_sided, _ = simsiam(symmetric=False)(some_views(), LABELS)
    torch.testing.assert_close(one_sided, negative_cosine_similarity(p[0], z[1].detach()))


def test_more_than_two_views_average_over_ordered_pairs() -> None:
    views = some_views(3)
    loss, _ = simsiam()(views, LABELS)
    z, p = manual(simsiam(), views)
    pairs = [
        negative_cosine_similarity(p[a], z[b].detach())
        for a in range(3)
        for b in range(3)
        if a != b
    ]
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_stop_gradient_stops_the_gradient() -> None:
    """With it, the encoder's gradient comes through p alone; without it, through z too."""
    views = some_views()
    gradients = {}
    for stop in (True, False):
        method = simsiam(stop_gradient=stop)
        method(views, LABELS)[0].backward()
        gradients[stop] = method.projector[0].weight.grad.clone()
    method = simsiam()
    z, p = manual(method, views)
    constant = [projection.detach().clone() for projection in z]
    loss = (
        negative_cosine_similarity(p[0], constant[1])
        + negative_cosine_similarity(p[1], constant[0])
    ) / 2
    loss.backward()
    torch.testing.assert_close(gradients[True], method.projector[0].weight.grad)
    assert (gradients[True] - gradients[False]).abs().max() > 1e-3 * gradients[True].abs().max()


def test_each_view_is_encoded_by_itself() -> None:
    """BatchNorm sees one view at a time, and its running statistics are updated once per view."""
    method = simsiam()
    dark, bright = some_views()
    bright = bright + 3.0
    loss, _ = method((dark, bright), LABELS)
    assert method.backbone[1].num_batches_tracked == 2
    joint = simsiam()
    z = joint.projector(joint.backbone(torch.cat([dark, bright])))
    p = joint.predictor(z)
    mixed = (
        negative_cosine_similarity(p[:8], z[8:]) + negative_cosine_similarity(p[8:], z[:8])
    ) / 2
    assert abs(loss.item() - mixed.item()) > 1e-2


def test_predictor_switches() -> None:
    assert isinstance(simsiam(predictor="none").predictor, nn.Identity)
    fixed = simsiam(predictor="fixed")
    assert not any(p.requires_grad for p in fixed.predictor.parameters())
    assert [g.constant_lr for g in simsiam().parameter_groups()] == [False, True]
    assert [g.constant_lr for g in simsiam(predictor_lr="decay").parameter_groups()] == [
        False,
        False,
    ]
    assert len(fixed.parameter_groups()) == 1
