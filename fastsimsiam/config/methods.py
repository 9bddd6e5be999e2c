"""The options of every method.

A run's `Config.method` is one of these. Its `name` tells which: in checkpoints, and for the class that
implements it (methods/registry.py).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastsimsiam.config.fields import Switch, require_within

_KINDS: dict[str, type["MethodConfig"]] = {}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all methods' options; each subclass gives itself a `name` of its own.

    Attributes:
        name: identifies the class in checkpoints; unique.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Makes the name known to `by_name`; a class that is defined again replaces itself."""
        name = getattr(cls, "name", None)
        if name is None:
            raise TypeError(f"{cls.__qualname__} needs a class attribute `name`")
        known = _KINDS.get(name)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{known.__qualname__} and {cls.__qualname__} have the same name, {name}"
            )
        _KINDS[name] = cls


def by_name(name: str) -> type[MethodConfig] | None:
    """The options of the method called `name`; None where there is no such method."""
    return _KINDS.get(name)


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig(MethodConfig):
    """SimSiam (arXiv 2011.10566) and the switches of its ablations."""

    name: ClassVar[str] = "simsiam"

    stop_gradient: Switch = True
    """Off: gradients flow through both sides, and the network collapses (paper, section 4.1)."""
    predictor: Literal["mlp", "none", "fixed"] = "mlp"
    """none: p = z. fixed: an untrained random MLP (paper, section 4.2)."""
    predictor_lr: Literal["constant", "decay"] = "constant"
    """constant: the predictor keeps the peak learning rate. decay: it follows the schedule."""
    symmetric: Switch = True
    """Off: only the first view is predicted from the second (paper, section 4.6)."""
    projector_layers: int = 3
    """Linear layers of the projector; 2 on CIFAR-10."""
    projector_output_bn: Switch = True
    """Off: BatchNorm in hidden layers only (paper, section 4.4); outputs can then be all alike."""
    projector_dim: int = 2048
    """Width of the projector's hidden layers and of the projection z."""
    predictor_dim: int = 512
    """Width of the predictor's hidden layer."""

    def __post_init__(self) -> None:
        for name, most in (
            ("projector_layers", 100),
            ("projector_dim", 2**17),
            ("predictor_dim", 2**17),
        ):
            require_within(f"method.{name}", getattr(self, name), 1, most)
