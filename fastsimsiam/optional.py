"""Optional dependencies: what to type when one is missing."""

import importlib
import importlib.util

from fastsimsiam.errors import UserError

_INSTALL_FFCV = (
    "apt-get install libopencv-dev libturbojpeg0-dev pkg-config && pip install 'fastsimsiam[ffcv]', or "
    "run scripts/install_ffcv.sh"
)
_INSTALL_DALI = (
    "pip install 'fastsimsiam[dali]' (or fastsimsiam[dali-cuda13] beside a torch for CUDA 13)"
)


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
    _require("ffcv", f"{why} needs FFCV", _INSTALL_FFCV)


def require_dali(why: str) -> None:
    """Refuses to go on without DALI.

    Raises:
        UserError: says how to install it, or why it does not load.
    """
    _require("nvidia.dali", f"{why} needs NVIDIA DALI", _INSTALL_DALI)


def _require(module: str, need: str, install: str) -> None:
    # Imported, not looked for: an extension whose libraries are gone is there, and does not load.
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{need}: {install}") from None
    except (ImportError, OSError) as error:
        raise UserError(
            f"{need}, which does not load ({error}); install it anew: {install}"
        ) from error
