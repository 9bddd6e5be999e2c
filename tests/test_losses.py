"""Losses and their gradients against independent NumPy code."""

import numpy as np
import pytest
import torch

from fastsimsiam.methods.collapse import collapse_std, collapse_threshold
from fastsimsiam.methods.losses import negative_cosine_similarity


def naive_loss(p: np.ndarray, z: np.ndarray) -> float:
    """Mean of minus the cosine, pair by pair."""
    total = 0.0
    for a, b in zip(p, z, strict=True):
        total -= float(a @ b) / (float(a @ a) ** 0.5 * float(b @ b) ** 0.5)
    return total / len(p)


def naive_gradient(p: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Gradient with regard to p: -(z/|z| - cos p/|p|) / |p| / B."""
    result = np.empty_like(p)
    for row, (a, b) in enumerate(zip(p, z, strict=True)):
        a_length, b_length = np.sqrt(a @ a), np.sqrt(b @ b)
        cosine = a @ b / (a_length * b_length)
        result[row] = -(b / b_length - cosine * a / a_length) / a_length / len(p)
    return result


@pytest.mark.parametrize("shape", [(1, 2), (7, 5), (64, 128)])
def test_negative_cosine_similarity(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    p, z = rng.normal(size=shape), rng.normal(size=shape)
    p_tensor = torch.tensor(p, dtype=torch.float32, requires_grad=True)
    loss = negative_cosine_similarity(p_tensor, torch.tensor(z))
    loss.backward()
    assert loss.item() == pytest.approx(naive_loss(p, z), abs=1e-6)
    np.testing.assert_allclose(p_tensor.grad, naive_gradient(p, z), atol=1e-6)


def test_bounds() -> None:
    p = torch.randn(5, 8)
    assert negative_cosine_similarity(p, 3 * p).item() == pytest.approx(-1)
    assert negative_cosine_similarity(p, -p).item() == pytest.approx(1)


def test_half_precision_inputs_are_compared_in_float32() -> None:
    p, z = torch.randn(16, 512), torch.randn(16, 512)
    loss = negative_cosine_similarity(p.bfloat16(), z.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(negative_cosine_similarity(p, z).item(), abs=5e-3)


def test_collapse_std_is_one_when_healthy_and_zero_when_collapsed() -> None:
    torch.manual_seed(0)
    assert collapse_std(torch.randn(4096, 64)).item() == pytest.approx(1.0, abs=0.02)
    assert collapse_std(torch.ones(64, 128) * torch.rand(64, 1)).item() < 1e-3
    one_axis = torch.zeros(64, 128)
    one_axis[:, 0] = torch.randn(64).sign()
    assert collapse_std(one_axis).item() < 0.2


def test_collapse_is_told_at_any_batch_size() -> None:
    """Behind a BatchNorm the most equal that outputs can be: all alike but one."""
    for batch in (16, 64, 512, 4096):
        z = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).repeat(batch, 1)
        z[0] = -5 * z[0]
        normed = torch.nn.BatchNorm1d(32, affine=False)(z)
        figure = collapse_std(normed).item()
        assert figure == pytest.approx(2 / batch**0.5, rel=0.1)
        assert figure < collapse_threshold(batch) <= 0.5
    assert collapse_threshold(4096) == 0.1
    assert collapse_threshold(144) == 0.25
    # Of nine healthy outputs the figure is about 0.95.
    assert all(collapse_threshold(rows) == 0.5 for rows in (2, 9, 16))
