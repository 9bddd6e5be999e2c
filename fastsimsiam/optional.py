"""Optional dependencies: what to type when one is missing."""

import importlib.util

from fastsimsiam.errors import UserError


def has_ffcv() -> bool:
    """Whether FFCV is installed."""
    return importlib.util.find_spec("ffcv") is not None


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed."""
    return (
        importlib.util.find_spec("nvidia") is not None
        and importlib.util.find_spec("nvidia.dali") is not None
    )


def require_ffcv(why: str) -> None:
    """Refuses to go on without FFCV.

    Raises:
        UserError: says how to install it.
    """
    if not has_ffcv():
        raise UserError(
            f"{why}, which needs FFCV: apt-get install libopencv-dev libturbojpeg0-dev pkg-config && "
            f"pip install 'fastsimsiam[ffcv]', or run scripts/install_ffcv.sh"
        )


def require_dali(why: str) -> None:
    """Refuses to go on without DALI.

    Raises:
        UserError: says how to install it.
    """
    if not has_dali():
        raise UserError(
            f"{why} needs NVIDIA DALI: pip install 'fastsimsiam[dali]' (or fastsimsiam[dali-cuda13] "
            f"beside a torch for CUDA 13)"
        )
