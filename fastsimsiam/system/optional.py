"""Optional dependencies: a missing one is an error of one line with the command that installs it."""

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
_INSTALL_TORCHCODEC = "pip install 'fastsimsiam[nvjpeg]' (a wheel for the CUDA version of torch)"
_OLDEST_TORCHCODEC = (0, 17)
"""Older versions let an H100's JPEG engine write into memory that is still in use."""


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed."""
    return (
        importlib.util.find_spec("nvidia") is not None
        and importlib.util.find_spec("nvidia.dali") is not None
    )


def has_ffcv() -> bool:
    """Whether FFCV is installed."""
    return importlib.util.find_spec("ffcv") is not None


def require_ffcv(why: str) -> None:
    """Raises an error if FFCV is missing or does not load.

    Raises:
        UserError: names `why` and the command that installs FFCV.
    """
    require("ffcv", why, _INSTALL_FFCV, name="FFCV")


def require_dali(why: str) -> None:
    """Raises an error if DALI is missing or does not load.

    Raises:
        UserError: names `why` and the command that installs DALI.
    """
    require("nvidia.dali", why, _INSTALL_DALI, name="NVIDIA DALI")


def require_torchcodec(why: str) -> None:
    """Raises an error if torchcodec is missing, does not load or is older than 0.17.

    Raises:
        UserError: names `why` and the command that installs torchcodec.
    """
    require("torchcodec", why, _INSTALL_TORCHCODEC)
    installed = version("torchcodec")
    if tuple(int(number) for number in installed.split(".")[:2]) < _OLDEST_TORCHCODEC:
        oldest = ".".join(map(str, _OLDEST_TORCHCODEC))
        raise UserError(
            f"{why} needs torchcodec {oldest} or newer, this is {installed}: {_INSTALL_TORCHCODEC}"
        )


def require(module: str, why: str, install: str, *, name: str | None = None) -> None:
    """Raises an error if an optional dependency is missing or does not load.

    Args:
        module: the module to import.
        why: the option or command that needs the module.
        install: the command that installs it.
        name: the library's name; None: the module's name.

    Raises:
        UserError: names `why` and `install`, and the reason if the module does not load.
    """
    need = f"{why} needs {name or module}"
    # Imported rather than found: an extension may be installed and lack a shared library.
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{need}: {install}") from None
    except (ImportError, OSError) as error:
        raise UserError(
            f"{need}, which does not load ({error}); reinstall it with {install}"
        ) from error
