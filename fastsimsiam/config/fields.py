"""What the fields of all configs share: switches, neutral fields, and checks of ranges."""

from dataclasses import field
from typing import Annotated, Any

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
