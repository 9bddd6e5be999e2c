"""What Inductor makes of fused layers compiles for a GPU: seen without one.

torch 2.11 with Triton 3.6 failed on one of these kernels on an H200.
"""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
# Answers of CUDA's runtime and driver where a GPU is there and idle; a type's size does not matter.
_RUNTIME = """
#include <string.h>
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : a == 76 ? 0 : 132; return 0; }
int cudaGetDeviceProperties(void *p, int d) { memset(p, 0, 512); return 0; }
int cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
int cudaDeviceGetStreamPriorityRange(int *a, int *b) { *a = 0; *b = -5; return 0; }
int cudaStreamIsCapturing(void *s, int *c) { *c = 0; return 0; }
int cudaEventCreateWithFlags(void **e, unsigned f) { *e = (void *)1; return 0; }
"""
_NOTHING = (
    "cudaSetDevice cudaGetLastError cudaPeekAtLastError cudaStreamQuery cudaEventRecord cudaEventQuery "
    "cudaStreamWaitEvent cudaEventDestroy cudaStreamSynchronize cudaDeviceSynchronize "
    "cudaThreadExchangeStreamCaptureMode"
).split()
_DRIVER = """
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 1; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "none"; return 0; }
"""
_COMPILE = """
import pickle, sys
import triton
from gpu_that_is_not_there import hopper_driver
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers
triton.runtime.driver.set_active(hopper_driver())
triton_helpers.set_driver_to_gpu = lambda: None
with open(sys.argv[1], "rb") as file:
    kernels = pickle.load(file)
# Elementwise kernels are simple, and half of the time.
kernels = [(name, source) for name, source in kernels if "triton_poi" not in name]
for name, source in kernels:
    try:
        getattr(PyCodeCache.load(source), name).precompile(warm_cache_only=True)
    except Exception as error:
        print(name, type(error).__name__, error)
print(len(kernels), "kernels")
"""


def _library(path: Path, source: str, *flags: str) -> Path:
    path.with_suffix(".c").write_text(source)
    words = ["gcc", "-shared", "-fPIC", *flags, "-o", str(path), str(path.with_suffix(".c"))]
    subprocess.run(words, check=True)
    return path


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch that is built for CUDA")
def test_fused_layers_compile_for_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    folder = tmp_path / "driver"
    folder.mkdir()
    runtime = _RUNTIME + "".join(f"int {name}() {{ return 0; }}\n" for name in _NOTHING)
    shim = _library(tmp_path / "runtime.so", runtime)
    _library(folder / "libcuda.so.1", _DRIVER, "-Wl,-soname,libcuda.so.1")
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": path,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    kernels = tmp_path / "kernels.pickle"
    words = [sys.executable, str(HERE / "gpu_that_is_not_there.py"), str(kernels)]
    pretended = environment | {"LD_PRELOAD": str(shim), "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(words, env=pretended, capture_output=True, text=True, check=False)
    assert kernels.exists(), done.stderr[-3000:]
    names = [name for name, _ in pickle.loads(kernels.read_bytes())]
    assert any("backward" in name for name in names)
    names = [name for name in names if "triton_poi" not in name]
    words = [sys.executable, "-c", _COMPILE, str(kernels)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{len(names)} kernels\n", done.stdout + done.stderr[-3000:]
