"""What the options of all methods have in common: a name, by which they are found."""

from dataclasses import dataclass
from typing import ClassVar

from fastsimsiam.config.fields import require_choices, require_used, require_within

_MOST_WIDE = 2**17
_RANGES = {
    "temperature": (1e-3, 1e3),
    "loss_scale": (1e-6, 1e6),
    "momentum": (0, 1),
    "projector_layers": (1, 100),
    "projector_dim": (1, _MOST_WIDE),
    "predictor_dim": (1, _MOST_WIDE),
    "hidden_dim": (1, _MOST_WIDE),
    "projection_dim": (1, _MOST_WIDE),
    "predictor_lr_factor": (0, 1e6),
    "projector_lr_factor": (0, 1e6),
    "queue_size": (1, 2**30),
}
"""Option -> its smallest and largest value, in every method of this package that has it."""
_KINDS: dict[str, type["MethodConfig"]] = {}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all methods' options; each subclass gives itself a `name` of its own.

    Literals and switches are checked here; a subclass with a `__post_init__` calls this one first.

    Attributes:
        name: identifies the class in checkpoints; unique.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        require_choices("method.", self)

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


def require_within_ranges(config: MethodConfig) -> None:
    """Refuses options of this package's methods that are out of range, or without effect.

    Raises:
        UserError: names the option and what to give.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(config, name, None)
        if value is not None:
            require_within(f"method.{name}", value, least, most)
    hidden, layers = getattr(config, "hidden_dim", None), getattr(config, "projector_layers", None)
    if layers is not None:
        fix = "a projector of 1 layer has no hidden one: give projector_layers 2 or more"
        require_used("method.hidden_dim", hidden, None, layers > 1, fix)


def by_name(name: str) -> type[MethodConfig] | None:
    """The options of the method called `name`; None where there is no such method."""
    return _KINDS.get(name)
