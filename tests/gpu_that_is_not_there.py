"""Compiles a step for a GPU that is not there: Inductor's part of it, run by test_compiles_for_gpu.py.

    python gpu_that_is_not_there.py KERNELS

Dynamo, AOTAutograd and Inductor see fake tensors on `cuda:0`, a Hopper GPU. All calls of CUDA's runtime
that they lead to are answered by a stand-in that the test preloads. The sources of the Triton kernels
are pickled into the file KERNELS, and nothing is run.
"""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.fx_passes import fuse_attention, joint_graph, misc_patterns, pad_mm
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _triton

HOPPER = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 << 30,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=60 << 20,
    gcnArchName="",
)
KERNELS: list[tuple[str, str]] = []


class _Stream:
    cuda_stream = stream_id = device_index = 0
    device = torch.device("cuda", 0)


def _note(self: AsyncCompile, name: str, source: str, device_str: str = "cuda") -> None:
    KERNELS.append((name, source))


def pretend() -> None:
    """Makes torch believe that there is a Hopper GPU, as far as compilation asks."""
    for name, answer in {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "current_device": 0,
        "device_count": 1,
        "get_device_properties": HOPPER,
        "_get_device_properties": HOPPER,
        "get_device_capability": (9, 0),
        "current_stream": _Stream(),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "synchronize": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    torch.accelerator.is_available = lambda *_: False
    for name, answer in {
        "is_available": True,
        "is_bf16_supported": True,
        "current_device": 0,
        "get_compute_capability": 90,
    }.items():
        setattr(CudaInterface, name, staticmethod(lambda *_, answer=answer, **__: answer))
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: HOPPER)
    CudaInterface.Worker.current_device = staticmethod(lambda: 0)
    fake_tensor.init_gpu_context = lambda *_: None
    _pretend_triton()
    # These passes run operators on the device.
    nothing = lambda *_, **__: None  # noqa: E731
    for module in (fuse_attention, pad_mm, misc_patterns, joint_graph):
        for name in ("_sfdp_init", "_pad_mm_init", "_misc_patterns_init"):
            if hasattr(module, name):
                setattr(module, name, nothing)
    torch._inductor.config.joint_graph_constant_folding = False
    torch._inductor.config.force_disable_caches = True
    torch._functorch.config.force_non_lazy_backward_lowering = True
    AsyncCompile.triton = _note


def _pretend_triton() -> None:
    import triton

    triton.runtime.driver.set_active(hopper_driver())
    for name in ("has_triton", "has_triton_package"):
        setattr(_triton, name, lambda *_, **__: True)
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("torch._inductor") and hasattr(
                module, name
            ):
                setattr(module, name, lambda *_, **__: True)


def hopper_driver() -> Any:
    """What Triton asks of the driver of a GPU before it compiles."""
    from triton.backends.compiler import GPUTarget

    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_stream=lambda device=0: 0,
    )


def on_gpu(mode: FakeTensorMode, tensor: Tensor) -> FakeTensor:
    """A fake tensor on the GPU in the shape, dtype and layout of a tensor."""
    return FakeTensor(mode, torch.empty_like(tensor, device="meta"), torch.device("cuda", 0))


def move(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Replaces all weights and buffers by fake ones on the GPU."""
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                part._parameters[name] = nn.Parameter(on_gpu(mode, weight))
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = on_gpu(mode, buffer)
    return module


def block() -> nn.Module:
    """A fused block, as in the first stage of a ResNet-50."""
    from torchvision.models.resnet import Bottleneck

    from fastsimsiam.models.fused_bottleneck.fuse import FusedBottleneck

    made = Bottleneck(256, 64).to(memory_format=torch.channels_last)
    made.__class__ = FusedBottleneck
    return made


def main() -> None:
    """Runs the command line."""
    pretend()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = move(block(), mode).train()
    features = torch.empty(64, 256, 56, 56, dtype=torch.bfloat16)
    features = on_gpu(mode, features.to(memory_format=torch.channels_last)).requires_grad_()
    module.compile(fullgraph=True, dynamic=False)
    try:
        with mode, torch.autocast("cuda", torch.bfloat16):
            module(features)
    except (AttributeError, RuntimeError):  # forward and backward are compiled, and cannot be run
        if not KERNELS:
            raise
    Path(sys.argv[1]).write_bytes(pickle.dumps(KERNELS))


if __name__ == "__main__":
    main()
