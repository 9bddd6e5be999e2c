"""VI-SimSiam: its density against the authors' of the distribution, its gradient against SimSiam's."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from power_spherical import PowerSpherical
from test_method_contract import backbone, some_views
from torch import Tensor, nn

from fastsimsiam.config.methods import SimSiamConfig, VISimSiamConfig
from fastsimsiam.errors import UserError
from fastsimsiam.methods.power_spherical import entropy, log_density, mean_cosine
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.methods.vi_simsiam import KappaHead, VISimSiam
from fastsimsiam.recipes import catalogue

KAPPAS = [1e-3, 0.1, 1.0, 50.0, 2047.0, 18423.0, 1e5, 1e6]


def unit(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("dim", [2, 3, 16, 128, 2048, 4096])
def test_the_density_is_the_papers(dim: int) -> None:
    """Values and gradients, in float64 and for float32 inputs."""
    mu, z = unit(2, len(KAPPAS), dim)
    cosine = (mu * z).sum(1).requires_grad_()
    kappa = torch.tensor(KAPPAS, dtype=torch.float64, requires_grad=True)
    twin = torch.tensor(KAPPAS, dtype=torch.float64, requires_grad=True)
    theirs = PowerSpherical(mu, twin, validate_args=False)
    ours = log_density(cosine, kappa, dim)
    torch.testing.assert_close(ours, theirs.log_prob(z), rtol=1e-12, atol=1e-8)
    ours.sum().backward()
    theirs.log_prob(z).sum().backward()
    torch.testing.assert_close(kappa.grad, twin.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cosine.grad, kappa.detach() / (1 + cosine.detach()))
    half = log_density(cosine.detach().float(), kappa.detach().float(), dim)
    assert half.dtype == torch.float64
    torch.testing.assert_close(half, ours.detach(), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 128, 2048, 4096])
def test_entropy_and_mean_cosine_are_the_papers(dim: int) -> None:
    mu = unit(len(KAPPAS), dim)
    kappa = torch.tensor(KAPPAS, dtype=torch.float64, requires_grad=True)
    twin = torch.tensor(KAPPAS, dtype=torch.float64, requires_grad=True)
    theirs = PowerSpherical(mu, twin, validate_args=False)
    torch.testing.assert_close(entropy(kappa, dim), theirs.entropy(), rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(mean_cosine(kappa, dim), theirs.base_dist.marginal_t.mean)
    entropy(kappa, dim).sum().backward()
    theirs.entropy().sum().backward()
    torch.testing.assert_close(kappa.grad, twin.grad, rtol=1e-6, atol=1e-10)


def test_the_density_of_the_circle_and_the_sphere_is_one_in_all() -> None:
    angle = torch.linspace(-math.pi, math.pi, 100_001, dtype=torch.float64)[:-1]
    step = 2 * math.pi / 100_000
    for kappa in (0.5, 20.0):
        given = torch.full_like(angle, kappa)
        circle = log_density(angle.cos(), given, 2).exp().sum() * step
        assert circle.item() == pytest.approx(1, abs=1e-6)
        height = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
        sphere = torch.trapezoid(
            log_density(height, torch.full_like(height, kappa), 3).exp(), height
        )
        assert 2 * math.pi * sphere.item() == pytest.approx(1, abs=1e-6)


def test_the_published_concentrations() -> None:
    cosine = torch.tensor([0.5, 0.8, 0.9, 0.95], dtype=torch.float64)
    for dim, kappas in ((2048, [2047, 8188, 18423, 38893]), (128, [127, 508, 1143, 2413])):
        expected = mean_cosine(torch.tensor(kappas, dtype=torch.float64), dim)
        torch.testing.assert_close(expected, cosine, rtol=1e-9, atol=1e-9)


def test_opposite_vectors_are_finite() -> None:
    """In bfloat16, unit vectors have products below -1."""
    cosine = torch.tensor([-1.0, -1.002, 1.002], requires_grad=True)
    kappa = torch.full((3,), 1e5, requires_grad=True)
    density = log_density(cosine, kappa, 2048)
    density.sum().backward()
    assert density.isfinite().all()
    assert kappa.grad is not None
    assert cosine.grad is not None
    assert kappa.grad.isfinite().all()
    assert cosine.grad.isfinite().all()


NARROW: dict[str, Any] = {"projector_layers": 2, "projector_dim": 16, "predictor_dim": 8}


def vi_simsiam(**options: Any) -> VISimSiam:
    """A small VI-SimSiam with fixed weights."""
    torch.manual_seed(0)
    return VISimSiam(backbone(), 12, VISimSiamConfig(**(NARROW | options)))


def test_with_a_fixed_kappa_and_von_mises_fisher_it_is_simsiam() -> None:
    """Gradients are equal; the value has the factor kappa / d."""
    torch.manual_seed(0)
    simsiam = SimSiam(backbone(), 12, SimSiamConfig(**NARROW))
    fixed = vi_simsiam(density="von-mises-fisher", kappa=80.0)
    views = some_views()
    expected, metrics = simsiam(views, torch.zeros(8))
    loss, own = fixed(views, torch.zeros(8))
    assert loss.item() == pytest.approx(5 * expected.item())
    assert own["cosine"].item() == pytest.approx(-expected.item())
    assert own["collapse_std"] == metrics["collapse_std"]
    expected.backward()
    loss.backward()
    for (name, one), (_, two) in zip(
        simsiam.named_parameters(), fixed.named_parameters(), strict=True
    ):
        assert two.grad is not None
        torch.testing.assert_close(two.grad, one.grad, msg=name)


def test_the_loss_is_the_mean_log_density_of_both_directions() -> None:
    method = vi_simsiam()
    assert method.kappa_head is not None
    nn.init.normal_(method.kappa_head.layers[-1].weight)  # a kappa of its own for each image
    views = some_views()
    loss, metrics = method(views, torch.zeros(8))
    h = [method.backbone(view) for view in views]
    z = [method.projector(features) for features in h]
    p = [method.predictor(projection) for projection in z]
    kappa = [method.kappa_head(features).double().detach() for features in h]
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        mu = nn.functional.normalize(p[a].detach().double(), dim=1)
        other = nn.functional.normalize(z[b].detach().double(), dim=1)
        total -= PowerSpherical(mu, kappa[a], validate_args=False).log_prob(other).mean().item()
    assert loss.item() == pytest.approx(total / 2 / 16, rel=1e-5)
    expected = np.mean([(k / (k + 15)).mean().item() for k in kappa])
    assert metrics["expected_cosine"].item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_the_gradient_is_that_of_the_log_density_over_the_mean_kappa() -> None:
    method = vi_simsiam()
    assert method.kappa_head is not None
    nn.init.normal_(method.kappa_head.layers[-1].weight)
    views = some_views()
    method(views, torch.zeros(8))[0].backward()
    gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
    method.zero_grad()
    h = [method.backbone(view) for view in views]
    z = [method.projector(features) for features in h]
    p = [method.predictor(projection) for projection in z]
    kappa = [method.kappa_head(features) for features in h]
    total = torch.zeros(())
    for a, b in ((0, 1), (1, 0)):
        mu = nn.functional.normalize(p[a], dim=1)
        other = nn.functional.normalize(z[b].detach(), dim=1)
        total = total - PowerSpherical(mu, kappa[a], validate_args=False).log_prob(other).mean()
    (total / 2 / torch.cat(kappa).detach().mean()).backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name, rtol=1e-3, atol=1e-5)


def test_an_uncertain_network_learns_as_fast() -> None:
    """A gradient that vanishes with kappa leaves the network where it was."""
    norms = []
    for bias in (0.0, -8.0):
        method = vi_simsiam()
        assert method.kappa_head is not None
        nn.init.constant_(method.kappa_head.layers[-1].bias, bias)
        method(some_views(), torch.zeros(8))[0].backward()
        gradients = [parameter.grad for parameter in method.predictor.parameters()]
        norms.append(nn.utils.get_total_norm([g for g in gradients if g is not None]).item())
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_kappa_reaches_any_certainty_at_the_learning_rates_of_sgd() -> None:
    """Toward the concentration of a mean cosine of 0.9, from one half, with lr 0.05 in 500 steps."""
    torch.manual_seed(0)
    head = KappaHead(12, 4, 2048)
    features = torch.randn(64, 12)
    start = mean_cosine(head(features), 2048)
    assert start.tolist() == [0.5] * 64
    sgd = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    for _ in range(500):
        sgd.zero_grad()
        loss = -log_density(torch.full((64,), 0.9), head(features), 2048).mean() / 2048
        loss.backward()
        sgd.step()
    assert mean_cosine(head(features), 2048).mean().item() == pytest.approx(0.9, abs=0.01)


def test_a_kappa_head_has_no_infinite_output() -> None:
    head = KappaHead(12, 4, 2048)
    with torch.no_grad():
        last = head.layers[-1]
        assert isinstance(last, nn.Linear)
        assert last.bias is not None
        for bias, cosine in ((1e4, 0.99995), (-1e4, 0.00005)):
            last.bias.fill_(bias)
            kappa = head(torch.randn(8, 12))
            assert mean_cosine(kappa.double(), 2048).tolist() == pytest.approx(
                [cosine] * 8, abs=1e-5
            )


def test_only_a_collapse_is_warned_of() -> None:
    healthy = {"loss": -3.1, "collapse_std": 0.9, "cosine": 0.95}
    assert VISimSiam.warning(healthy, 64) is None
    assert VISimSiam.warning(healthy | {"collapse_std": 0.2, "cosine": 0.3}, 64) is None
    told = VISimSiam.warning(healthy | {"collapse_std": 0.01}, 64)
    assert told
    assert "all images get the same output" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "von-mises-fisher"}, "method.density is von-mises-fisher: its kappa cannot"),
        ({"kappa": 0.0}, "method.kappa is 0"),
        ({"kappa": 9.0, "kappa_dim": 8}, "method.kappa_dim is 8: kappa is fixed"),
        ({"projector_dim": 1}, "method.projector_dim is 1"),
    ],
)
def test_options_without_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VISimSiamConfig(**options)


def test_the_recipes_are_simsiams() -> None:
    for name in ("imagenet-100ep", "imagenette", "imagewoof"):
        own = catalogue.recipe(f"vi-simsiam-{name}")
        theirs = catalogue.recipe(name)
        same = replace(own, recipe=theirs.recipe, out=theirs.out, method=theirs.method)
        assert same == theirs
        assert own.method == VISimSiamConfig()
