"""Heads of linear layers, BatchNorm and ReLU; each method's own sizes and flags are in methods/."""

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import nn

OutputNorm = Literal["none", "affine", "plain", "scale"]
"""BatchNorm after the last layer: none; with scale and offset; without both; with the scale alone."""


def mlp(
    widths: Sequence[int],
    *,
    hidden_norm: bool = True,
    hidden_bias: bool = False,
    output_norm: OutputNorm = "none",
    output_bias: bool = True,
) -> nn.Sequential:
    """Linear layers, with ReLU after all but the last.

    A bias has no effect before a BatchNorm, but some publications have it: it is decayed, and counts.

    Args:
        widths: of the input, the hidden layers and the output.
        hidden_norm: BatchNorm between each hidden layer and its ReLU.
        hidden_bias: hidden layers have a bias.
        output_norm: BatchNorm after the last layer.
        output_bias: the last layer has a bias.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        bias = output_bias if number == last else hidden_bias
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        if number < last:
            if hidden_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(nn.ReLU(inplace=True))
        elif output_norm != "none":
            norm = nn.BatchNorm1d(outputs, affine=output_norm != "plain")
            if output_norm == "scale":
                norm.register_parameter("bias", None)
            layers.append(norm)
    return nn.Sequential(*layers)
