"""The heads of a checkpoint: what a method learned beside the backbone."""

import torch

from fastsimsiam.evaluate.finite import require_finite_weights
from fastsimsiam.evaluate.pretrained import PretrainedBackbone
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.registry import build_method, find_method
from fastsimsiam.runs.checkpoint import load
from fastsimsiam.runs.fit import require_fit


def trained_method(pretrained: PretrainedBackbone) -> Method | None:
    """The whole method of a checkpoint, in eval mode on the CPU; None for weights without heads.

    Raises:
        UserError: the file does not fit its own config.
    """
    if pretrained.config is None or not pretrained.whole_method:
        return None
    method = build_method(pretrained.config)
    weights = load(pretrained.path).method
    require_fit(weights, method.state_dict(), pretrained.path)
    method.load_state_dict(weights)
    return method.eval()


def method_with_certainty(pretrained: PretrainedBackbone, device: torch.device) -> Method | None:
    """The checkpoint's method on a device, if it says how certain it is and the file holds its heads.

    Raises:
        UserError: its weights are not finite, or do not fit.
    """
    config = pretrained.config
    if config is None or find_method(config.method).certainty is Method.certainty:
        return None  # without reading the file once more
    method = trained_method(pretrained)
    if method is None:
        return None
    with torch.no_grad():
        if method.certainty(torch.zeros(1, pretrained.feature_dim)) is None:
            return None
    require_finite_weights(method, f"the heads in {pretrained.path}")
    return method.to(device)
