"""Where to compute, and in which dtype; each choice comes with its reason, for the log."""

import torch

from fastsimsiam.config.run import DeviceName, PrecisionName
from fastsimsiam.errors import UserError


def choose_device(asked: DeviceName, local_rank: int = 0) -> tuple[torch.device, str]:
    """The training device and why.

    Args:
        asked: `auto`, or what the user wants.
        local_rank: number of the GPU.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UserError("--device cuda: torch finds no CUDA device: pass --device cpu")
    if asked == "cuda" or (asked == "auto" and available):
        return torch.device("cuda", local_rank), "asked for" if asked == "cuda" else "found"
    return torch.device("cpu"), "asked for" if asked == "cpu" else "no CUDA device"


def choose_dtype(asked: PrecisionName, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the network's arithmetic and why.

    Args:
        asked: `auto`, or what the user wants.
        device: of the network.
    """
    if asked != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[asked], "asked for"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.backends.cpu.get_cpu_capability() and _cpu_computes_in_bf16())
    if native:
        return torch.bfloat16, f"the {device.type} computes in it"
    return torch.float32, f"the {device.type} has no bfloat16 arithmetic"


def _cpu_computes_in_bf16() -> bool:
    # Emulated bfloat16 is slower than float32, and torch has no public question for this before
    # `torch.cpu.get_capabilities`.
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())
