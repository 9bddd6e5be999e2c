"""Projector and predictor, as in SimSiam's section 3 and appendix."""

from torch import nn


def projector(in_dim: int, dim: int, num_layers: int, output_bn: bool = True) -> nn.Sequential:
    """Linear layers with BatchNorm; ReLU after all but the last, whose BatchNorm has no affine part.

    Linear layers have no bias: the BatchNorm after them would remove it.

    Args:
        in_dim: number of the backbone's features.
        dim: width of all layers.
        num_layers: number of linear layers; 3 on ImageNet, 2 on CIFAR-10.
        output_bn: False: the last linear layer has a bias instead of a BatchNorm.
    """
    layers: list[nn.Module] = []
    for number in range(num_layers):
        last = number == num_layers - 1
        normed = output_bn or not last
        layers.append(nn.Linear(in_dim if number == 0 else dim, dim, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(dim, affine=not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """Two linear layers with a bottleneck; the output has neither BatchNorm nor ReLU.

    Args:
        dim: width of the projection z and the prediction p.
        hidden_dim: width of the bottleneck, dim / 4 as published.
    """
    return nn.Sequential(
        nn.Linear(dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, dim),
    )
