"""Whether the values in a checkpoint can be those of a run: types, ranges, states of generators."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsimsiam.runs.archive import DamagedCheckpointError

CHECKPOINT_NAME = re.compile(r"step-([0-9]{8,})\.pt")
_MOST_STEPS = 2**53
# With and without the offset of the generator.
_CUDA_STATE_BYTES = (8, 16)


def require_possible_values(stored: dict[str, Any], path: Path) -> None:
    """Refuses values that no run has written, before anything relies on them.

    Args:
        stored: the content of a checkpoint's file, with all its keys.
        path: the file, for the error.

    Raises:
        DamagedCheckpointError: names the keys.
    """
    step, seconds = stored["step"], stored.get("seconds", 0.0)
    optimizer, rng, ranks = stored["optimizer"], stored["rng"], stored.get("ranks")
    named = CHECKPOINT_NAME.fullmatch(path.name)
    wrong = {
        "config": not isinstance(stored["config"], dict),
        "step": type(step) is not int or not 0 <= step < _MOST_STEPS,
        "data": not isinstance(stored["data"], str),
        "method": not _is_state_dict(stored["method"]),
        "optimizer": not (
            isinstance(optimizer, dict)
            and isinstance(optimizer.get("state"), dict)
            and all(isinstance(state, dict) for state in optimizer["state"].values())
            and isinstance(optimizer.get("param_groups"), list)
            and all(isinstance(group, dict) for group in optimizer["param_groups"])
        ),
        "rng": not (_is_state_dict(rng) and _is_rng_state(rng)),
        "ranks": not (ranks is None or (type(ranks) is int and ranks >= 1)),
        "seconds": type(seconds) not in (int, float) or not 0 <= seconds < math.inf,
    }
    bad = [key for key, is_wrong in wrong.items() if is_wrong]
    if bad:
        raise DamagedCheckpointError(f"{path} is damaged: no run has such a {', '.join(bad)}")
    if named and int(named[1]) != step:
        raise DamagedCheckpointError(
            f"{path} is damaged: it holds step {step}, not the step of its name"
        )


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str)
        and isinstance(item, Tensor)
        and item.layout == torch.strided
        and not item.is_quantized
        for key, item in value.items()
    )


def _is_rng_state(rng: dict[str, Tensor]) -> bool:
    if any(state.dtype != torch.uint8 or state.dim() != 1 for state in rng.values()):
        return False
    try:
        torch.Generator().set_state(rng["cpu"])
    except (KeyError, RuntimeError):
        return False
    return "cuda" not in rng or rng["cuda"].numel() in _CUDA_STATE_BYTES
