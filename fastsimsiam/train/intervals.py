"""When a run logs and saves."""

import time

import torch

from fastsimsiam.config.run import CheckpointConfig, Config
from fastsimsiam.train.distributed import World


def log_every(config: Config, device: torch.device) -> int:
    """Steps between two lines of metrics, for each of which the host waits for the device."""
    return config.log_every or (10 if device.type == "cpu" else 100)


class SaveClock:
    """Tells when a checkpoint is due: so many steps apart, and not sooner than some minutes."""

    def __init__(self, every: int, config: CheckpointConfig) -> None:
        """Starts with the run, or with what was resumed.

        Args:
            every: steps between two checkpoints.
            config: the time between them.
        """
        self._every = every
        self._seconds = 60.0 * config.min_minutes
        self.restart()

    def restart(self) -> None:
        """Notes that a checkpoint has been written."""
        self._saved = time.monotonic()

    def is_due(self, step: int, world: World, device: torch.device) -> bool:
        """Whether to save after a step; the same on all ranks, although their clocks differ."""
        if step % self._every:
            return False
        late = time.monotonic() - self._saved >= self._seconds
        return bool(world.maximum(int(late), device))
