"""What `auto` takes for a loader, on machines that this one is not."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CPU
from small_places import exit_code, files_of_at_most

from fastsimsiam.config.methods import MoCoConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.loaders import registry
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.system import compiler
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.train import auto

GPU = torch.device("cuda", 0)
MS_NOEXEC = 8


class Machine:
    """Pretends to be another machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.be(memory=1 << 40, free=1 << 40, gpu_memory=1 << 40, cores=16, dali=True)

    def be(self, **what: int) -> None:
        """Sets host memory and its free part, free GPU memory, cores, whether there is DALI."""
        for key, value in what.items():
            if key == "gpu_memory":
                self._patch.setattr(torch.cuda, "mem_get_info", lambda _, free=value: (free, free))
            else:
                name = {
                    "memory": "host_memory",
                    "free": "available_memory",
                    "cores": "num_cores",
                    "dali": "has_dali",
                }[key]
                self._patch.setattr(registry, name, lambda value=value: value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One with room for everything, until told otherwise."""
    return Machine(monkeypatch)


@pytest.fixture
def config() -> Config:
    """Leaves the choice open."""
    return catalogue.recipe("imagenette")


@pytest.fixture
def folder(class_folders: Path) -> Storage:
    """About a megabyte when decoded."""
    return open_split(class_folders, "train")


def test_what_is_compiled(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    monkeypatch.setattr(auto, "why_compile_fails", lambda _: None)
    assert auto.choose_compile(config, 10_000, GPU)[0] == "step"
    compiled, why = auto.choose_compile(config, 10_000, GPU, num_processes=2)
    assert (compiled, "SyncBatchNorm" in why) == ("color", True)
    moco = replace(config, method=MoCoConfig())  # without SyncBatchNorm
    compiled, why = auto.choose_compile(moco, 10_000, GPU, num_processes=2)
    assert (compiled, why) == ("color", "compiling the step is not measured yet with several GPUs")
    assert auto.choose_compile(config, 10_000, CPU)[0] == "color"
    assert auto.choose_compile(config, 10, CPU) == ("off", "a short run on a CPU")
    few = replace(config, max_steps=3)
    assert auto.choose_compile(few, 10_000, CPU) == ("off", "a short run on a CPU")
    asked = replace(config, compile="step")
    assert auto.choose_compile(asked, 10, CPU) == ("step", "asked for")
    with pytest.raises(UserError, match="pass --compile color"):
        auto.choose_compile(asked, 10, GPU, num_processes=2)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_compiling_lacks_is_named(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, config: Config, tmp_path: Path
) -> None:
    for variable in ("CC", "CXX", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"):
        monkeypatch.delenv(variable, raising=False)
    asked = replace(config, compile="step")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiler.sysconfig, "get_paths", lambda _: {"include": str(tmp_path)})
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    compiled, why = auto.choose_compile(config, 10_000, device)
    assert compiled == "off"
    assert "install g" in why
    # Who asks for it may know better: a run is not refused for what only seems to be missing.
    compiled, why = auto.choose_compile(asked, 10_000, device)
    assert compiled == "step"
    assert re.search("WARNING: if it fails, install g.*pass --compile off", why)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: name)
    assert auto.choose_compile(asked, 10_000, device) == ("step", "asked for")
    (tmp_path / "Python.h").unlink()
    assert "install python3" in auto.choose_compile(asked, 10_000, device)[1]
    assert "-dev, for Python.h" in auto.choose_compile(config, 10_000, device)[1]
    elsewhere = tmp_path / "headers"
    elsewhere.mkdir()
    (elsewhere / "Python.h").touch()
    own = "C_INCLUDE_PATH" if device.type == "cuda" else "CPLUS_INCLUDE_PATH"
    monkeypatch.setenv(own, f":{elsewhere}")
    assert auto.choose_compile(asked, 10_000, device) == ("step", "asked for")


def test_a_place_for_compiled_programs_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    usual = compiler._why_no_place()
    assert usual is None
    with files_of_at_most(1 << 20):
        assert "MiB of room in" in str(compiler._why_no_place())

    def why() -> int:
        problem = str(compiler._why_no_place())
        return 5 if "room in" in problem and "No space left" in problem else 6

    def why_not_from_here() -> int:
        return 5 if f"no program may run from {tmp_path}" in str(compiler._why_no_place()) else 6

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert exit_code(why, tmpfs=tmp_path, size="1m") == 5
    assert exit_code(why_not_from_here, tmpfs=tmp_path, size="20m", flags=MS_NOEXEC) == 5


def test_what_fits_is_kept(machine: Machine, config: Config, folder: Storage) -> None:
    for device in (CPU, GPU):
        name, why = registry.choose_loader(config.loader, folder, device)
        assert name == "resident"
        assert "GB decoded is within" in why


def test_what_is_asked_for_is_taken(machine: Machine, config: Config, folder: Storage) -> None:
    assert registry.choose_loader("cpu", folder, CPU)[0] == "cpu"


def test_what_does_not_fit_is_decoded_as_it_comes(
    machine: Machine, config: Config, folder: Storage
) -> None:
    machine.be(memory=1 << 20, gpu_memory=1 << 20)
    name, why = registry.choose_loader(config.loader, folder, CPU)
    assert name == "cpu"
    assert "is more than 10% of the memory" in why
    assert registry.choose_loader(config.loader, folder, GPU)[0] == "cpu"


def test_memory_counts_once_for_each_process(
    machine: Machine, config: Config, folder: Storage
) -> None:
    machine.be(free=4 << 20, dali=False)
    assert registry.choose_loader(config.loader, folder, GPU, num_processes=1)[0] == "resident"
    name, why = registry.choose_loader(config.loader, folder, GPU, num_processes=8)
    assert name == "cpu"
    assert "for 8 processes" in why


def test_memory_of_other_programs_is_not_taken(
    machine: Machine, config: Config, folder: Storage
) -> None:
    machine.be(free=1 << 20, dali=False)
    for device in (CPU, GPU):
        name, why = registry.choose_loader(config.loader, folder, device, num_processes=16)
        assert name == "cpu"
        assert "is more than 50% of the 0.00 GB of memory that no program uses" in why


def test_few_cores_for_each_gpu_leave_decoding_to_it(
    machine: Machine, config: Config, folder: Storage
) -> None:
    machine.be(gpu_memory=1 << 20)
    assert registry.choose_loader(config.loader, folder, GPU, num_processes=2)[0] == "cpu"
    name, why = registry.choose_loader(config.loader, folder, GPU, num_processes=4)
    assert name == "dali"
    assert "4 CPU cores per GPU" in why
    machine.be(dali=False)
    assert registry.choose_loader(config.loader, folder, GPU, num_processes=4)[0] == "cpu"
    machine.be(dali=True, memory=1 << 20)
    assert registry.choose_loader(config.loader, folder, CPU, num_processes=4)[0] == "cpu"


def test_packed_files_take_the_loaders_of_folders(
    machine: Machine, config: Config, folder: Storage, tmp_path: Path
) -> None:
    """Also where FFCV is installed, as it is for these tests: `ffcv` is for those who ask for it."""
    pack(folder, tmp_path / "a.beton", PackOptions())
    beton = open_beton(tmp_path / "a.beton")
    assert registry.choose_loader(config.loader, beton, GPU)[0] == "resident"
    machine.be(gpu_memory=1 << 20)
    assert registry.choose_loader(config.loader, beton, GPU)[0] == "cpu"
    assert registry.choose_loader(config.loader, beton, GPU, num_processes=4)[0] == "dali"
    machine.be(dali=False)
    assert registry.choose_loader(config.loader, beton, GPU, num_processes=4)[0] == "cpu"
    machine.be(memory=1 << 20)
    assert registry.choose_loader(config.loader, beton, CPU)[0] == "cpu"
    assert registry.choose_loader("ffcv", beton, CPU) == ("ffcv", "asked for")
