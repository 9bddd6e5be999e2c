"""kNN against brute force in float64."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU
from torch import nn

from fastsimsiam.config.views import IMAGENET_PIXELS
from fastsimsiam.evaluate import neighbors
from fastsimsiam.evaluate.features import center_plan, extract
from fastsimsiam.evaluate.knn import usable_k
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.storage.class_folder import open_split


def brute_force(
    bank: np.ndarray, label: np.ndarray, queries: np.ndarray, k: int, temperature: float
) -> list[int]:
    """Predictions query by query, with votes summed in float64."""
    answers = []
    for query in queries:
        similarity = bank @ query
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(label.max() + 1)
        for position in nearest:
            votes[label[position]] += np.exp(similarity[position] / temperature)
        answers.append(int(votes.argmax()))
    return answers


@pytest.fixture
def features() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Bank, its labels, queries, their labels: noisy clusters."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(5, 16, generator=generator)
    label = torch.randint(0, 5, (300,), generator=generator)
    query_label = torch.randint(0, 5, (70,), generator=generator)
    bank = F.normalize(centers[label] + 1.5 * torch.randn(300, 16, generator=generator), dim=1)
    queries = F.normalize(
        centers[query_label] + 1.5 * torch.randn(70, 16, generator=generator), dim=1
    )
    return bank, label, queries, query_label


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_accuracy_equals_brute_force(
    features: tuple[torch.Tensor, ...], temperature: float
) -> None:
    bank, label, queries, query_label = features
    accuracy = neighbors.knn_accuracy(
        bank, label, queries, query_label, k=(200, 1, 10), temperature=temperature, num_classes=5
    )
    for k in (1, 10, 200):
        answers = brute_force(
            bank.double().numpy(), label.numpy(), queries.double().numpy(), k, temperature
        )
        expected = np.mean(np.array(answers) == query_label.numpy())
        assert accuracy[k] == pytest.approx(expected, abs=1e-6)
    assert list(accuracy) == [200, 1, 10]
    assert 0.5 < accuracy[10] < 1.0


def test_chunk_sizes_change_nothing(
    features: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, _, queries, _ = features
    whole = neighbors.nearest(queries, bank, 20)
    monkeypatch.setattr(neighbors, "_QUERY_CHUNK", 9)
    monkeypatch.setattr(neighbors, "_BANK_CHUNK", 13)
    pieces = neighbors.nearest(queries, bank, 20)
    torch.testing.assert_close(pieces[0], whole[0])
    assert torch.equal(pieces[1], whole[1])


def test_usable_k() -> None:
    assert usable_k((200, 10, 20), 50) == [10, 20]
    assert usable_k((200,), 50) == [50]


def test_features_are_in_order_and_the_network_is_unchanged(class_folders: object) -> None:
    storage = open_split(class_folders, "train")
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    loader = build_loader(
        "cpu", storage, LoaderOptions(device=CPU, workers=2, on_bad_image="error")
    )
    plan = center_plan(storage, 16, 0.875)
    found = extract(
        backbone, loader, plan, constants=IMAGENET_PIXELS, device=CPU, dtype=torch.float32
    )
    feature, label = found.unit, found.label
    loader.close()
    assert feature.shape == (96, 4)
    assert label.tolist() == storage.label.tolist()
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(96))
    assert backbone.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


_LARGE = """
import resource, torch
import torch.nn.functional as F
from fastsimsiam.evaluate.neighbors import knn_accuracy, nearest
generator = torch.Generator().manual_seed(0)
bank = torch.randn(100_000, 2048, generator=generator)
bank /= bank.norm(dim=1, keepdim=True)
queries = F.normalize(torch.randn(1_500, 2048, generator=generator), dim=1)
label = torch.randint(0, 1000, (100_000,), generator=generator)
accuracy = knn_accuracy(
    bank, label, queries, torch.zeros(1_500, dtype=torch.int64), k=(20, 200), temperature=0.1,
    num_classes=1000,
)
assert all(0 <= share < 0.01 for share in accuracy.values()), accuracy
similarity, position = nearest(queries[:40], bank, 200)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
# Compared with the whole bank, in float64 and in parts.
exact = torch.cat([queries[:40].double() @ part.double().T for part in bank.split(10_000)], dim=1)
value, index = exact.topk(200, dim=1)
assert (similarity.double() - value).abs().max() < 1e-6
wrong = position != index
# The order may differ only between similarities that are equal in float32.
assert exact.gather(1, position)[wrong].sub(value[wrong]).abs().max() < 1e-6 if wrong.any() else True
print(f"peak {peak:.2f} GiB")
assert peak < 3, peak
"""


def test_a_large_bank_needs_little_memory_and_is_exact() -> None:
    """100,000 features of 2,048 dimensions, 1,500 queries: under 3 GiB, equal to float64."""
    done = subprocess.run(
        [sys.executable, "-c", _LARGE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
