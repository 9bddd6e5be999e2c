"""Whether weights and features are numbers: NaN is no score."""

import torch
from torch import nn

from fastsimsiam.errors import UserError

_SHOWN = 3


class NotFiniteError(UserError):
    """Weights or features are NaN or infinite."""


def require_finite_weights(backbone: nn.Module, source: object) -> None:
    """Refuses weights that are not finite.

    Args:
        backbone: the network.
        source: the file of the weights, for the message.

    Raises:
        NotFiniteError: names the tensors.
    """
    if broken := _broken_tensors(backbone):
        raise NotFiniteError(
            f"the weights of {source} are not finite ({broken}): the file is damaged, or its "
            "training diverged: pass an earlier checkpoint or another file"
        )


def require_finite_features(finite: bool, backbone: nn.Module, source: object) -> None:
    """Refuses features that are not finite, with the likeliest reason.

    Args:
        finite: whether all features are.
        backbone: the network that computed them.
        source: the file of its weights, for the message.

    Raises:
        NotFiniteError: `finite` is False.
    """
    if finite:
        return
    reason = _broken_tensors(backbone) or _negative_variance(backbone) or "too large values"
    raise NotFiniteError(
        f"the features of {source} are not finite ({reason}): its weights are damaged, or its "
        "training diverged: pass an earlier checkpoint or another file"
    )


def _broken_tensors(backbone: nn.Module) -> str:
    """`NaN in conv1.weight and 3 more`; empty if all weights and statistics are finite."""
    broken = [
        (name, bool(torch.isnan(value).any()))
        for name, value in backbone.state_dict().items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if not broken:
        return ""
    names = ", ".join(name for name, _ in broken[:_SHOWN])
    more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    return f"{'NaN' if any(nan for _, nan in broken) else 'infinity'} in {names}{more}"


def _negative_variance(backbone: nn.Module) -> str:
    """Names a BatchNorm whose running variance has no root."""
    for name, value in backbone.state_dict().items():
        if name.endswith("running_var") and bool((value < 0).any()):
            return f"negative values in {name}"
    return ""
