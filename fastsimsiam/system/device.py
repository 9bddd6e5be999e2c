"""The device and the dtype of a run, each with the reason for the log."""

import torch

from fastsimsiam.config.run import DeviceName, PrecisionName
from fastsimsiam.errors import UserError


def choose_device(name: DeviceName, local_rank: int = 0) -> tuple[torch.device, str]:
    """The training device and the reason for it.

    Args:
        name: `auto`, `cpu` or `cuda`.
        local_rank: number of the GPU.

    Raises:
        UserError: `name` is `cuda` and there is no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: torch finds no CUDA device: pass --device cpu")
    if name == "cuda" or (name == "auto" and available):
        return torch.device("cuda", local_rank), "asked for" if name == "cuda" else "found"
    return torch.device("cpu"), "asked for" if name == "cpu" else "no CUDA device"


def choose_dtype(name: PrecisionName, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the network's arithmetic and the reason for it.

    Args:
        name: `auto`, `bf16` or `fp32`.
        device: the network's device.
    """
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[name], "asked for"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.backends.cpu.get_cpu_capability() and _cpu_computes_in_bf16())
    if native:
        return torch.bfloat16, f"the {device.type} computes in it"
    return torch.float32, f"the {device.type} has no bfloat16 arithmetic"


def _cpu_computes_in_bf16() -> bool:
    # Emulated bfloat16 is slower than float32. Before `torch.cpu.get_capabilities` torch has no public
    # function for this.
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())
