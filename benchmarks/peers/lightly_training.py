"""lightly's SimSiam as its documentation writes it: transform, DataLoader, modules and loop.

ResNet-18, batches of 256, SGD at 0.06 without momentum, heads of 512 and 128. Where the documentation
decides by a data set that it downloads, a folder is read; workers are one per core.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimSiamTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.harness import fastsimsiam
from fastsimsiam.system.resources import num_cores

_LOG_SECONDS = 30.0


class Network(nn.Module):
    """Backbone and heads of the documentation's example."""

    def __init__(self) -> None:
        """Builds them with fresh weights."""
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Stopped projections and predictions (B, 128)."""
        z = self.projection_head(self.backbone(images).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)


def train(
    data: Path,
    out: Path,
    *,
    side: int,
    crop_fraction: float,
    minutes: float,
    seed: int,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Trains for some minutes and scores the backbone by kNN, as the other runs are.

    Args:
        data: folder with train/ and val/.
        out: folder of the weights.
        side: of the crops in pixels.
        crop_fraction: side of the centered square of evaluation, over the image's shorter side.
        minutes: duration of training and both evaluations.
        seed: of torch.
        batch_size: images per step.

    Returns:
        A result like that of `training.result_of`: metrics by step, seconds, minutes.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    dataset = LightlyDataset(str(data / "train"), transform=SimSiamTransform(input_size=side))
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=MultiViewCollate(),
        shuffle=True,
        drop_last=True,
        num_workers=num_cores(),
    )
    network = Network()
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06)
    started = time.perf_counter()

    def score() -> dict[str, float]:
        return _score(network, data, out, side, crop_fraction)

    metrics: list[dict[str, float]] = [{"step": 0} | score()]
    evaluation = time.perf_counter() - started
    step, images, logged = 0, 0, time.perf_counter()
    end = started + max(60 * minutes - evaluation, evaluation + 1)
    while time.perf_counter() < end:
        for (first, second), _, _ in loader:
            z0, p0 = network(first)
            z1, p1 = network(second)
            loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step, images = step + 1, images + len(first)
            now = time.perf_counter()
            if now - logged > _LOG_SECONDS:
                speed = images / (now - logged)
                metrics.append({"step": step, "loss": loss.item(), "images_per_second": speed})
                logged, images = now, 0
            if now > end:
                break
    metrics.append({"step": step} | score())
    seconds = time.perf_counter() - started
    return {
        "regime": "training",
        "flags": ["lightly", f"batch {batch_size}", f"{side} px"],
        "config": {"epochs": round(step * batch_size / len(dataset), 1)},
        "seconds": seconds,
        "minutes": round(seconds / 60, 1),
        "metrics": metrics,
    }


def _score(
    network: Network, data: Path, out: Path, side: int, crop_fraction: float
) -> dict[str, float]:
    """KNN of the backbone's features, normalized as its transform does."""
    weights, scores = out / "backbone.pth", out / "knn.json"
    torch.save(network.backbone.state_dict(), weights)
    fastsimsiam(
        *("knn", weights, "--data", data, "--arch", "resnet18", "--image-size", side),
        *("--crop-fraction", crop_fraction, "--json", scores),
    )
    percent = json.loads(scores.read_text())["trained"]
    return {f"knn_top1_k{k}": score for k, score in percent.items()}
