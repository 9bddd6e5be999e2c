"""What happened since the last log step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastsimsiam.loaders.base import Batch
from fastsimsiam.train.distributed import World


@dataclass(kw_only=True)
class Window:
    """Sums over the steps since the last log step; the tensors stay on the device.

    Attributes:
        device: where the sums are.
        sums: metric -> its sum.
        steps: number of steps.
        waited: seconds spent waiting for data.
        started: when the window began, by `time.perf_counter`.
        parts: the batch of the latest step, until the next one is asked for.
    """

    device: torch.device
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    parts: Sequence[Batch] = ()

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the metrics of a step."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def means(self, world: World) -> dict[str, float]:
        """Means per step and over all ranks; waits for the device."""
        totals = torch.stack(list(self.sums.values())) / self.steps
        return dict(zip(self.sums, world.mean(totals).tolist(), strict=True))
