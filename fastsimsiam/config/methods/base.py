"""What the options of all methods have in common: a name, by which they are found."""

from dataclasses import dataclass
from typing import ClassVar

from fastsimsiam.config.fields import require_choices

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


def by_name(name: str) -> type[MethodConfig] | None:
    """The options of the method called `name`; None where there is no such method."""
    return _KINDS.get(name)
