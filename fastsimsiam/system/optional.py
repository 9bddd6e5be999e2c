"""Optional dependencies: what to type when one is missing."""

import importlib
import importlib.util
from importlib.metadata import version

from fastsimsiam.errors import UserError

_INSTALL_FFCV = (
    "apt-get install libopencv-dev libturbojpeg0-dev pkg-config && pip install 'fastsimsiam[ffcv]', or "
    "run scripts/install_ffcv.sh"
)
_INSTALL_DALI = (
    "pip install 'fastsimsiam[dali]' (or fastsimsiam[dali-cuda13] beside a torch for CUDA 13)"
)

_INSTALL_TORCHCODEC = (
    "pip install 'fastsimsiam[nvjpeg]' (a wheel for the CUDA version of torch)"
)
_OLDEST_TORCHCODEC = (0, 17)
"""Older versions let an H100's JPEG engine write into memory that is still in use."""


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed."""
    return (
        importlib.util.find_spec("nvidia") is not None
        and importlib.util.find_spec("nvidia.dali") is not None
    )


def require_ffcv(why: str) -> None:
    """Refuses to go on without FFCV.

    Raises:
        UserError: says how to install it, or why it does not load.
    """
    require("ffcv", why, _INSTALL_FFCV, name="FFCV")


def require_dali(why: str) -> None:
    """Refuses to go on without DALI.

    Raises:
        UserError: says how to install it, or why it does not load.
    """
    require("nvidia.dali", why, _INSTALL_DALI, name="NVIDIA DALI")


def require_torchcodec(why: str) -> None:
    """Refuses to go on without torchcodec 0.17 or newer.

    Raises:
        UserError: says how to install it, or why it does not load.
    """
    require("torchcodec", why, _INSTALL_TORCHCODEC)
    installed = version("torchcodec")
    if tuple(int(number) for number in installed.split(".")[:2]) < _OLDEST_TORCHCODEC:
        oldest = ".".join(map(str, _OLDEST_TORCHCODEC))
        raise UserError(
            f"{why} needs torchcodec {oldest} or newer, this is {installed}: {_INSTALL_TORCHCODEC}"
        )


def require(module: str, why: str, install: str, *, name: str | None = None) -> None:
    """Refuses to go on without an optional dependency.

    Args:
        module: to import.
        why: what needs it.
        install: the command that brings it.
        name: as people call it; None: the module's.

    Raises:
        UserError: says how to install it, or why it does not load.
    """
    need = f"{why} needs {name or module}"
    # Imported, not looked for: an extension whose libraries are gone is there, and does not load.
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{need}: {install}") from None
    except (ImportError, OSError) as error:
        raise UserError(
            f"{need}, which does not load ({error}); install it anew: {install}"
        ) from error
