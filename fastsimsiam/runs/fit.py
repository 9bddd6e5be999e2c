"""Whether the weights of a checkpoint are those of a network: names, shapes, dtypes, finite numbers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsimsiam.runs.archive import DamagedCheckpointError

_SHOWN = 3


def require_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuses a state dict that a module cannot load.

    Args:
        state: the state dict of a file.
        expected: that of the module.
        path: the file, for the error.

    Raises:
        DamagedCheckpointError: names the keys.
    """
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    other = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    types = [
        f"{key} is {state[key].dtype}, not {value.dtype}"
        for key, value in expected.items()
        if key in state and state[key].dtype != value.dtype
    ]
    for keys, what in ((missing, "lacks"), (unknown, "has unknown"), (other, ""), (types, "")):
        if keys:
            raise DamagedCheckpointError(
                f"{path} is damaged: it does not fit the network of its own config: "
                f"{what}{' ' if what else ''}{_shorten(keys)}"
            )


def require_finite(state: Mapping[str, Tensor], names: Iterable[str], path: Path) -> None:
    """Refuses weights that are not finite.

    Raises:
        DamagedCheckpointError: names the first of them.
    """
    bad = [name for name in names if not torch.isfinite(state[name]).all()]
    if bad:
        raise DamagedCheckpointError(
            f"{path} is damaged: its weights are not finite: {_shorten(bad)}"
        )


def require_optimizer(
    stored: Mapping[str, Any],
    groups: Sequence[Sequence[Tensor]],
    names: Collection[str],
    path: Path,
) -> None:
    """Refuses the state of another optimizer, or of one of other parameters.

    Args:
        stored: the optimizer's state dict.
        groups: the parameters of each of its groups.
        names: what its state holds of each parameter that has had a gradient.
        path: the file, for the error.

    Raises:
        DamagedCheckpointError: it cannot be loaded.
    """
    parameters = [parameter for group in groups for parameter in group]
    counts = [len(group) for group in groups]
    fits = (
        [_count(group.get("params")) for group in stored["param_groups"]] == counts
        and [i for group in stored["param_groups"] for i in group["params"]]
        == list(range(len(parameters)))
        and all(
            type(number) is int
            and 0 <= number < len(parameters)
            and (not state or set(state) == set(names))
            and all(_belongs(name, value, parameters[number]) for name, value in state.items())
            for number, state in stored["state"].items()
        )
    )
    if not fits:
        raise DamagedCheckpointError(
            f"{path} is damaged: its optimizer's state is not that of its network"
        )


def _count(value: object) -> int:
    return len(value) if isinstance(value, list) else -1


def _belongs(name: str, value: object, parameter: Tensor) -> bool:
    """Whether a value can be part of the state of a parameter: finite, and of its shape."""
    if not isinstance(value, Tensor):
        return False
    is_like = value.shape == parameter.shape and value.dtype == parameter.dtype
    is_count = name == "step" and value.dim() == 0
    return (is_like or is_count) and bool(torch.isfinite(value).all())


def _shorten(texts: Sequence[str]) -> str:
    rest = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + rest
