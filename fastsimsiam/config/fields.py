"""What the fields of all configs share: switches, neutral fields, and checks of ranges."""

import types
import typing
from dataclasses import field, fields
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from fastsimsiam.errors import UserError

MOST_EPOCHS = 1_000_000
"""The longest run; beyond it a number of epochs is a slip."""
MOST_PIXELS = 16_384
"""The largest side of an image that a network receives."""
MOST_WORKERS = 4_096
"""The largest number of threads or processes of a loader."""
_SWITCH = {"on": True, "off": False}

Switch = Annotated[
    bool,
    tyro.conf.FlagConversionOff,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="{on,off}",
        instance_from_str=lambda words: _SWITCH[words[0]],
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: ["on" if value else "off"],
        choices=("on", "off"),
    ),
]
"""A boolean written `on` or `off` on the command line."""


def neutral(default: Any) -> Any:
    """A field that changes nothing of what is learned: a run may be resumed with another value."""
    return field(default=default, metadata={"neutral": True})


def require(condition: bool, key: str, value: object, fix: str) -> None:
    """Refuses a value.

    Raises:
        UserError: `condition` does not hold; names the key, its value, and what to give instead.
    """
    if not condition:
        shown = f"{value:g}" if isinstance(value, float) else value
        raise UserError(f"{key} is {shown}: {fix}")


def require_within(
    key: str, value: float, least: float, most: float, *, above: bool = False
) -> None:
    """Refuses a number that is out of range, or not a number.

    Args:
        key: names the field in the message.
        value: the number.
        least: the smallest number that is allowed.
        most: the largest.
        above: `least` itself is not allowed.

    Raises:
        UserError: names the key, its value, and what to give instead.
    """

    def text(number: float) -> str:
        return f"{number:g}" if isinstance(number, float) else str(number)

    # Not in digits, since an integer may have thousands of them.
    if not isinstance(value, float) and abs(value) > 10**30:
        require(
            False, key, "a number of more than 30 digits", f"give {text(least)} to {text(most)}"
        )
    require(not value > most, key, text(value), f"give {text(most)} or less")
    enough = value > least if above else value >= least
    fix = f"give more than {text(least)}" if above else f"give {text(least)} or more"
    require(enough, key, text(value), fix)


_CHOICES: dict[type, dict[str, tuple[object, ...]]] = {}
"""What `_choices` has found, by class: annotations are slow to read, and views are made often."""


def _choices(kind: type) -> dict[str, tuple[object, ...]]:
    """The fields of a dataclass that take a few values alone, and these values."""
    if kind in _CHOICES:
        return _CHOICES[kind]
    hints = typing.get_type_hints(kind)
    found = _CHOICES[kind] = {}
    for item in fields(kind):
        hint = hints[item.name]
        optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
        parts = typing.get_args(hint) if optional else (hint,)
        values: list[object] = []
        for part in parts:
            if typing.get_origin(part) is Literal:
                values += typing.get_args(part)
            elif part is bool:
                values += [True, False]
            elif part is types.NoneType:
                values.append(None)
            else:
                break  # takes other values, too
        else:
            found[item.name] = tuple(values)
    return found


def require_choices(owner: str, config: object) -> None:
    """Refuses a value of a `Literal` or a switch that is none of its choices; nothing else would.

    Args:
        owner: what stands before a field's name in the message, such as `method.`; with `--` fields are
            written as options.
        config: a dataclass.

    Raises:
        UserError: names the field, its value and the choices.
    """
    for name, choices in _choices(type(config)).items():
        value = getattr(config, name)
        # By type, too: 1 is no switch, though it is equal to True.
        if any((type(value), value) == (type(known), known) for known in choices):
            continue
        *others, last = map(repr, choices)
        key = f"--{name.replace('_', '-')}" if owner == "--" else f"{owner}{name}"
        require(False, key, repr(value), f"give {', '.join(others)} or {last}")


def require_used(key: str, value: object, default: object, used: bool, fix: str) -> None:
    """Refuses an option that is set where nothing reads it.

    Raises:
        UserError: names the option, its value, and what to do.
    """
    require(used or value == default, key, value, f"{fix}, or leave it out")


def require_checked(on_bad_image: str, check_images: bool) -> None:
    """Refuses settings that promise to stop at a decoder's warning, and do not look for one.

    Raises:
        UserError: names both options.
    """
    strict = on_bad_image.endswith("-strict") and not check_images
    require(not strict, "--on-bad-image", on_bad_image, "it needs --check-images on")


def require_gray16_max(value: int) -> None:
    """Refuses a largest gray level that 16 bits cannot hold.

    Raises:
        UserError: names the option.
    """
    require(1 <= value <= 65535, "--gray16-max", value, "give 1 to 65535")


def require_probability(owner: str, config: object, *names: str) -> None:
    """Refuses fields `names` of a config that are no probabilities.

    Raises:
        UserError: names the first one as `owner.name`.
    """
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value <= 1.0, f"{owner}.{name}", value, "give a probability from 0 to 1")
