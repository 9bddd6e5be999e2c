"""One contract for every loader: same samples, same labels, same boxes, same views."""

import gc
import io
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import CPU, open_with_pil, require
from PIL import Image

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.run import CpuConfig, LoaderName
from fastsimsiam.config.views import Interpolation, NormalizeConfig, ViewSpec
from fastsimsiam.doctor.synthetic import textured_image
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.loaders import cpu_loader as cpu_module
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, Loader, LoaderOptions
from fastsimsiam.loaders.dali_loader import DaliLoader
from fastsimsiam.loaders.decode import read_rgb, upright
from fastsimsiam.loaders.frame_loader import FrameLoader
from fastsimsiam.loaders.frame_processes import FrameProcesses
from fastsimsiam.loaders.frame_threads import FrameThreads
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.loaders.jpeg_header import jpeg_size
from fastsimsiam.loaders.process_loader import ProcessLoader
from fastsimsiam.loaders.reference_loader import ReferenceLoader, crop_with_pil
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.loaders.resident_loader import ResidentLoader, decode_all
from fastsimsiam.plan.batches import Plan, TrainPlan
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.system import optional
from fastsimsiam.tools.pack import PackOptions, pack

Make = Callable[..., Loader]
# Largest and mean difference to PIL in gray levels. The host kernel rounds as PIL does but for ties;
# the device's products do not round between the two passes.
TOLERANCE = {
    "cpu": (1, 0.05),
    "cpu-processes": (1, 0.05),
    "resident": (1, 0.05),
    "resident-device": (1, 0.3),
    "reference": (0, 0.0),
    # Crops as `resident-device`. On a GPU torchcodec decodes by nvJPEG; here, by libjpeg-turbo.
    "frames": (1, 0.3),
    "frames-processes": (1, 0.3),
    "frames-decoded-on-device": (1, 0.3),
    # Another libjpeg-turbo than PIL's, and always the horizontal pass first.
    "ffcv": (1, 0.05),
    # DALI resamples the frame around the box, so the outermost pixels see across its edge.
    "dali-crops": (160, 1.5),
    "dali": (1, 0.3),
}
# The bicubic filter overshoots. Where it does, pixels depend on which pass is clipped first: Pillow
# takes the vertical one first where that is less work, the host kernel never, the device always.
BICUBIC_TOLERANCE = {
    "cpu": (16, 0.05),
    "cpu-processes": (16, 0.05),
    "resident": (16, 0.05),
    "resident-device": (16, 0.3),
    "reference": (0, 0.0),
    "frames": (16, 0.3),
    "frames-processes": (16, 0.3),
    "frames-decoded-on-device": (16, 0.3),
    "ffcv": (16, 0.05),
    "dali-crops": (160, 1.5),
    "dali": (16, 0.3),
}
# Two filters at one size: each view has its own.
BOTH_FILTERS = (ViewSpec(), ViewSpec(interpolation="bicubic"))
LOADERS = list(TOLERANCE)
OF_FILES = [name for name in LOADERS if name != "ffcv"]
_packed: dict[tuple[str, ...], Path] = {}


@pytest.fixture(scope="module", autouse=True)
def _pack_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    _packed[()] = tmp_path_factory.mktemp("packed")


def stored(name: str, storage: ImageFiles) -> Storage:
    """The images as a loader wants them: packed for ffcv."""
    if name != "ffcv":
        return storage
    key = (str(storage.root), *storage.paths)
    if key not in _packed:
        _packed[key] = _packed[()] / f"{len(_packed)}.beton"
        pack(storage, _packed[key], PackOptions(), workers=2)
    return open_beton(_packed[key])


def pil_of(storage: Storage, index: int) -> Image.Image:
    """What PIL makes of a sample."""
    return open_with_pil(io.BytesIO(storage.read(index)))


def make_loader(name: str, storage: Storage, **options: object) -> Loader:
    """A loader of the contract; `reference` leaves color to the device like the others."""
    told = LoaderOptions(**({"device": CPU, "workers": 2, "on_bad_image": "error"} | options))
    if name == "reference":
        return ReferenceLoader(storage, told, full=False)
    if name == "cpu-processes":  # what a GPU gets by default
        return cpu_module.cpu_loader(storage, told, processes=2)
    if name in ("frames", "frames-processes"):
        return cpu_module.frame_loader(storage, told, processes=2 if name != "frames" else 0)
    if name == "frames-decoded-on-device":
        return FrameLoader(FrameThreads(storage, told, decode_on_device=True), CPU)
    if name == "resident-device":
        # What a GPU runs; the same arithmetic on a CPU.
        policy = BadImagePolicy(told.on_bad_image)
        policy.require_readable(storage)
        frames = decode_all(storage, policy, told.workers, None)
        return ResidentLoader(frames, storage, policy, device=CPU)
    if name == "dali-crops":  # what a GPU runs
        return DaliLoader(storage, told, crop_in_dali=True)
    return build_loader(name, storage, told)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A loader by name."""
    library = request.param.partition("-")[0]
    if library in ("ffcv", "dali"):
        require(library)
    if request.param == "frames-decoded-on-device":
        require("torchcodec")
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every loader takes every test, but those on broken files, of which ffcv has none."""
    own = [
        mark for mark in metafunc.definition.iter_markers("parametrize") if "name" in mark.args[0]
    ]
    if "name" in metafunc.fixturenames and not own:
        files = metafunc.definition.get_closest_marker("of_files")
        metafunc.parametrize("name", OF_FILES if files else LOADERS, indirect=True)


def train_plan(storage: Storage, **changes: object) -> TrainPlan:
    """Two views of 32 pixels."""
    options = {
        "label": storage.label,
        "sizes": storage.sizes,
        "seed": 1,
        "image_size": 32,
        "specs": (ViewSpec(), ViewSpec()),
        "batch_size": 20,
    }
    return TrainPlan(**(options | changes))


def run(loader: Loader, plan: Plan, epoch: int = 0, start: int = 0) -> list[Batch]:
    """All batches of an epoch."""
    with closing(loader):
        return list(loader.iterate(plan, epoch, start))


def test_every_sample_once_with_its_label(name: str, class_folders: Path) -> None:
    storage = stored(name, open_split(class_folders, "train"))
    batches = run(make_loader(name, storage), train_plan(storage))
    assert len(batches) == 96 // 20
    index = torch.cat([batch.index for batch in batches]).numpy()
    label = torch.cat([batch.label for batch in batches]).numpy()
    assert len(set(index)) == 80
    np.testing.assert_array_equal(label, storage.label[index])
    for batch in batches:
        assert [tuple(crop.shape) for crop in batch.crops] == [(20, 2, 32, 32, 3)]
        assert batch.crops[0].dtype == torch.uint8
        assert batch.photometric["order"].shape == (20, 2, 4)


def test_evaluation_shows_every_sample_in_order(name: str, class_folders: Path) -> None:
    """Bilinear, after an epoch of other views by the same loader, too."""
    storage = stored(name, open_split(class_folders, "train"))
    plan = center_plan(storage, 16, 1.0)
    with closing(make_loader(name, storage)) as loader:
        deque(loader.iterate(train_plan(storage, specs=BOTH_FILTERS)), maxlen=0)
        batches = list(loader.iterate(plan))
    index = torch.cat([batch.index for batch in batches])
    assert index.tolist() == list(range(96))
    told = batches[0].crops[0][5, 0], pil_of(storage, 5), plan.batch(0, 0).views.box[5, 0].tolist()
    assert distance(*told, "bilinear").mean() < distance(*told, "bicubic").mean()


def distance(crop: torch.Tensor, image: Image.Image, box: list[int], name: str) -> np.ndarray:
    """Difference of a crop (S, S, 3) to PIL's by a filter, in gray levels."""
    wanted = crop_with_pil(image, box, len(crop), name)
    return np.abs(crop.numpy() - np.asarray(wanted, dtype=np.int16))


def check_boxes(
    name: str, storage: Storage, plan: TrainPlan, tolerance: tuple[int, float] | None = None
) -> None:
    """Compares crops with PIL's: they are close to those of their filter, and less to the other's."""
    differences: dict[Interpolation, list[np.ndarray]] = {}
    for step, batch in enumerate(run(make_loader(name, storage), plan)):
        expected = plan.batch(0, step)
        np.testing.assert_array_equal(batch.index, expected.index)
        for row, sample in enumerate(expected.index):
            image = pil_of(storage, int(sample))
            for view, own in enumerate(plan.interpolations):
                told = batch.crops[0][row, view], image, expected.views.box[row, view].tolist()
                (other,) = set(get_args(Interpolation)) - {own}
                difference = distance(*told, own)
                assert difference.mean() <= distance(*told, other).mean()
                differences.setdefault(own, []).append(difference)
    for interpolation, each in differences.items():
        rows = BICUBIC_TOLERANCE if interpolation == "bicubic" else TOLERANCE
        largest, mean = tolerance or rows[name]
        stacked = np.stack(each)
        assert stacked.max() <= largest
        assert stacked.mean() <= mean


@pytest.mark.parametrize("specs", [(ViewSpec(),) * 2, BOTH_FILTERS])
def test_boxes_are_honored_and_resampled_as_pil_does(
    name: str, specs: tuple[ViewSpec, ...], class_folders: Path
) -> None:
    storage = stored(name, open_split(class_folders, "train"))
    check_boxes(name, storage, train_plan(storage, specs=specs))


def test_boxes_are_honored_on_photographs(name: str, photos: Path) -> None:
    every = open_split(photos, "train")
    slow = name.startswith(("resident-device", "frames"))  # on a CPU
    some = slice(None, None, 10 if slow else 8)
    storage = replace(
        every,
        paths=every.paths[some],
        label=every.label[some],
        sizes=every.sizes[some],
        orientation=every.orientation[some],
    )
    storage = stored(name, storage)
    check_boxes(name, storage, train_plan(storage, image_size=224, specs=BOTH_FILTERS))


def test_the_reference_colors_each_view_in_its_own_order(class_folders: Path) -> None:
    """As the official recipe's code does: all by PIL, in worker processes."""
    color = ViewSpec(jitter=1.0, hue=0.4, grayscale=0.5, blur=0.0, interpolation="bicubic")
    specs = (replace(color, grayscale_first=True), color)
    storage = open_split(class_folders, "train")
    plan = train_plan(storage, specs=specs)
    told = LoaderOptions(device=CPU, workers=2)
    reference, batch = (
        run(loader, plan)[0]
        for loader in (ReferenceLoader(storage, told), make_loader("cpu", storage))
    )
    pixels = NormalizeConfig(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    views = Photometric(specs, plan.view_sizes, normalize=pixels)(batch.crops, batch.photometric)
    for number, view in enumerate(views):
        wanted = reference.crops[0][:, number].permute(0, 3, 1, 2).float()
        assert (view - wanted).abs().mean() < 1.5
    assert not reference.photometric["grayscale"].any()


def test_views_of_several_sizes(name: str, class_folders: Path) -> None:
    storage = stored(name, open_split(class_folders, "train"))
    specs = tuple(ViewSpec(size=size, interpolation="bicubic") for size in (16, None, 16))
    batch = run(make_loader(name, storage), train_plan(storage, specs=specs))[0]
    assert [tuple(crop.shape) for crop in batch.crops] == [(20, 2, 16, 16, 3), (20, 1, 32, 32, 3)]
    plan = train_plan(storage, specs=specs)
    box = plan.batch(0, 0).views.box[0, 2].tolist()
    image = pil_of(storage, int(batch.index[0]))
    wanted = np.asarray(crop_with_pil(image, box, 16, "bicubic"), dtype=np.int16)
    assert np.abs(batch.crops[0][0, 1].numpy() - wanted).max() <= BICUBIC_TOLERANCE[name][0]


def test_any_start_and_any_number_of_workers_give_the_same(name: str, class_folders: Path) -> None:
    storage = stored(name, open_split(class_folders, "train"))
    plan = train_plan(storage)
    whole = run(make_loader(name, storage, workers=1), plan, epoch=3)
    rest = run(make_loader(name, storage, workers=2), plan, epoch=3, start=2)
    assert len(rest) == len(whole) - 2
    for one, two in zip(whole[2:], rest, strict=True):
        for a, b in zip(one.tensors(), two.tensors(), strict=True):
            assert torch.equal(a, b)


def test_epochs_differ_and_have_equally_many_steps(name: str, class_folders: Path) -> None:
    storage = stored(name, open_split(class_folders, "train"))
    plan = train_plan(storage)
    with closing(make_loader(name, storage)) as loader:
        epochs = [list(loader.iterate(plan, epoch)) for epoch in range(3)]
    assert {len(batches) for batches in epochs} == {plan.num_batches}
    assert not torch.equal(epochs[0][0].index, epochs[1][0].index)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """20 images, of which three are broken: truncated, a text, and empty."""
    rng = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "train" / f"{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg")
    whole = (tmp_path / "train" / "0" / "04.jpg").read_bytes()
    (tmp_path / "train" / "0" / "04.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path


@pytest.mark.of_files
def test_a_broken_image_stops_the_run_and_is_named(name: str, damaged: Path) -> None:
    storage = open_split(damaged, "train")
    with pytest.raises(
        BadImageError, match=r"04\.jpg cannot be decoded .*--on-bad-image skip"
    ) as caught:
        run(make_loader(name, storage), train_plan(storage))
    assert "\n" not in str(caught.value)


@pytest.mark.of_files
def test_broken_images_are_replaced_and_reported(name: str, damaged: Path) -> None:
    (damaged / "train" / "0" / "06.jpg").write_text("this is no image")
    (damaged / "train" / "1" / "07.jpg").write_bytes(b"")
    storage = open_split(damaged, "train")
    loader = make_loader(name, storage, on_bad_image="skip")
    batch = run(loader, train_plan(storage))[0]
    bad = {4, 6, 7}
    broken = {i for i in range(20) if storage.file_of(i).name in ("04.jpg", "06.jpg", "07.jpg")}
    assert len(broken) == len(bad)
    assert not broken & set(batch.index.tolist())
    assert {Path(path).name for path in loader.bad_images} == {"04.jpg", "06.jpg", "07.jpg"}
    # Labels, boxes and parameters are those of the sample that stands in.
    np.testing.assert_array_equal(batch.label, storage.label[batch.index.numpy()])
    plan = train_plan(storage)
    for row, sample in enumerate(batch.index.tolist()):
        own = plan.rows(0, np.array([sample]))
        wanted = crop_with_pil(pil_of(storage, sample), own.views.box[0, 1].tolist(), 32)
        assert (
            np.abs(batch.crops[0][row, 1].numpy() - np.asarray(wanted, np.int16)).max()
            <= TOLERANCE[name][0]
        )
        assert batch.photometric["hue"][row, 0] == own.views.hue[0, 0]
    again = run(make_loader(name, storage, on_bad_image="skip", workers=1), train_plan(storage))[0]
    assert torch.equal(again.index, batch.index)
    assert torch.equal(again.crops[0], batch.crops[0])


@pytest.mark.of_files
def test_data_damaged_inside_is_refused_by_all(name: str, damaged: Path) -> None:
    """DALI alone shows its guess, where it is told to check nothing."""
    content = bytearray((damaged / "train" / "0" / "06.jpg").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = b"\xff\xc4" * 200
    (damaged / "train" / "0" / "04.jpg").write_bytes(content)
    storage = open_split(damaged, "train")
    if name.startswith("dali"):
        unchecked = make_loader(name, storage, check_images=False)
        assert len(run(unchecked, train_plan(storage))) == 1
    with pytest.raises(BadImageError, match=r"04\.jpg cannot be decoded"):
        run(make_loader(name, storage), train_plan(storage))


@pytest.mark.of_files
def test_what_the_decoder_refuses_is_named(name: str, damaged: Path) -> None:
    """DALI does not say which image of a batch it was."""
    content = bytearray((damaged / "train" / "0" / "06.jpg").read_bytes())
    lengths = content.find(b"\xff\xc4") + 5
    content[lengths : lengths + 16] = b"\xff" * 16  # a Huffman table that cannot be
    (damaged / "train" / "0" / "04.jpg").write_bytes(content)
    storage = open_split(damaged, "train")
    with pytest.raises(BadImageError, match=r"04\.jpg cannot be decoded .*skip"):
        run(make_loader(name, storage), train_plan(storage, batch_size=5))
    loader = make_loader(name, storage, on_bad_image="skip")
    batches = run(loader, train_plan(storage, batch_size=5))
    assert [len(batch.index) for batch in batches] == [5] * 4
    assert {Path(path).name for path in loader.bad_images} == {"04.jpg"}
    whole = {f"{number:02d}.jpg" for number in range(20)} - {"04.jpg"}
    assert {storage.file_of(i).name for batch in batches for i in batch.index.tolist()} == whole


def test_oddities_come_out_as_upright_rgb(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    folder = tmp_path / "k"
    folder.mkdir()
    photo = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(
        (90, 60), Image.Resampling.BICUBIC
    )
    photo.convert("L").save(folder / "gray.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("RGBA").save(folder / "alpha.png")
    photo.convert("1").save(folder / "bilevel.png")
    photo.save(folder / "png_named.jpg", format="PNG")
    photo.crop((0, 0, 1, 1)).save(folder / "pixel.png")
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(folder / f"turned{orientation}.jpg", exif=exif)
    storage = stored(name, open_split(tmp_path, "train"))
    plan = train_plan(storage, batch_size=len(storage))
    # A dithered black-and-white image is the worst case of every rounding, and of DALI's edges.
    check_boxes(name, storage, plan, tolerance=(255, 3.0) if name == "dali-crops" else (2, 0.3))
    check_boxes(name, storage, replace(plan, specs=BOTH_FILTERS), tolerance=(255, 3.0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_undoes_every_orientation(orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(
        upright(pixels, orientation), np.asarray(open_with_pil(tmp_path / "x.png"))
    )


def test_a_jpeg_cut_off_in_its_header_is_no_plain_one() -> None:
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "JPEG")
    jpeg = file.getvalue()
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    jpeg = jpeg[:2] + adobe + jpeg[2:]
    assert jpeg_size(memoryview(jpeg)) == (20, 30)
    for length in range(jpeg.index(b"\xff\xda")):
        assert jpeg_size(memoryview(jpeg[:length] + b"\xff\xd9")) is None


def test_the_storage_alone_says_how_an_image_stands(name: str, tmp_path: Path) -> None:
    """Decoders turn nothing by themselves: the storage has read the orientation, and may hold 1."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 3
    for exif in ("with", "without"):
        (tmp_path / exif / "k").mkdir(parents=True)
    for number in range(4):
        photo = textured_image(rng, 40, 40)
        photo.save(tmp_path / "with" / "k" / f"{number}.jpg", exif=turned)
        photo.save(tmp_path / "without" / "k" / f"{number}.jpg")
    crops = []
    for exif in ("with", "without"):
        storage = open_split(tmp_path / exif, "train")
        storage = stored(name, replace(storage, orientation=np.ones(4, np.uint8)))
        crops.append(run(make_loader(name, storage), train_plan(storage, batch_size=4))[0].crops[0])
    assert torch.equal(*crops)


@pytest.mark.of_files
def test_a_file_that_changes_size_during_a_run_is_reported(name: str, damaged: Path) -> None:
    storage = open_split(damaged, "train")
    for index in range(len(storage)):
        Image.new("RGB", (10, 10)).save(storage.file_of(index))
    with pytest.raises(BadImageError, match="10x10 pixels, but was 64x48"):
        run(make_loader(name, storage), train_plan(storage))


def worker_threads() -> list[str]:
    """Threads of loaders that are alive."""
    ours = ("crops", "frames", "ahead", "beside-dali")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)]


@pytest.mark.parametrize(
    "name", ["cpu", "resident", "frames", "frames-processes", "dali"], indirect=True
)
def test_leaving_an_epoch_early_and_closing_ends_all_threads(
    name: str, class_folders: Path
) -> None:
    storage = open_split(class_folders, "train")
    loader = make_loader(name, storage)
    iterator: Iterator[Batch] = loader.iterate(train_plan(storage))
    next(iterator)
    assert worker_threads()
    del iterator
    gc.collect()
    loader.close()
    assert not worker_threads()


@pytest.mark.parametrize(
    ("options", "loader", "source"),
    [
        (CpuConfig(), ProcessLoader, None),
        (CpuConfig(processes=0), HostLoader, None),
        (CpuConfig(crops="device"), FrameLoader, FrameProcesses),
        (CpuConfig(crops="device", processes=0), FrameLoader, FrameThreads),
    ],
)
def test_the_cpu_loader_works_where_it_is_told_to(
    options: CpuConfig, loader: type, source: type | None, class_folders: Path
) -> None:
    """Made for a GPU; nothing touches it before the first batch."""
    storage = open_split(class_folders, "train")
    made = build_loader(
        "cpu",
        storage,
        LoaderOptions(device=torch.device("cuda", 0), workers=1, on_bad_image="error"),
        cpu=options,
    )
    with closing(made):
        assert type(made) is loader
        assert source is None or type(made._source) is source


def test_crops_on_the_device_need_a_gpu(class_folders: Path) -> None:
    storage = open_split(class_folders, "train")
    with pytest.raises(UserError, match=r"--cpu\.crops device needs a GPU: pass --cpu\.crops host"):
        build_loader("cpu", storage, LoaderOptions(device=CPU), cpu=CpuConfig(crops="device"))


@pytest.mark.parametrize("name", sorted(set(get_args(LoaderName)) - {"auto"}))
def test_every_name_of_the_command_line_is_built(name: str, class_folders: Path) -> None:
    """Or refused in one line, as ffcv is for folders and nvjpeg on a CPU."""
    storage = open_split(class_folders, "train")
    with suppress(UserError):
        build_loader(name, storage, LoaderOptions(device=CPU, workers=1)).close()


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (None, r"--loader nvjpeg needs torchcodec: pip install 'fastsimsiam\[nvjpeg\]'"),
        ("0.16.0+cu130", r"needs torchcodec 0\.17 or newer, this is 0\.16\.0\+cu130: pip install"),
        ("1.0.0", r"torchcodec cannot decode on cpu \(not compiled.*\): pass --loader cpu"),
    ],
)
def test_a_torchcodec_that_will_not_do_is_refused_in_one_line(
    installed: str | None, message: str, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is missing, an old one has nvJPEG's race, and a new one may lack nvJPEG."""

    def decode_jpeg(*_: object, **__: object) -> None:
        raise RuntimeError("not compiled with nvJPEG support\nand much more")

    decoders = SimpleNamespace(decode_jpeg=decode_jpeg)
    monkeypatch.setitem(sys.modules, "torchcodec", decoders if installed else None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(optional, "version", lambda _: installed)
    with pytest.raises(UserError, match=message) as caught:
        make_loader("frames-decoded-on-device", open_split(class_folders, "train"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="cannot ask for reading ahead here")
@pytest.mark.parametrize("prefetch", [None, 1])
def test_beside_a_cpu_that_trains_files_alone_are_read_ahead(
    prefetch: int | None, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_split(class_folders, "train")
    plan = train_plan(storage)
    first, second, third = (set(plan.index(0, step).tolist()) for step in (0, 1, 2))
    asked: set[int] = set()
    made: set[int] = set()
    decode = BadImagePolicy.read_rgb

    def counted(policy: BadImagePolicy, storage: Storage, index: int) -> np.ndarray:
        made.add(index)
        return decode(policy, storage, index)

    monkeypatch.setattr(ImageFiles, "will_need", lambda _, index: asked.add(index))
    monkeypatch.setattr(BadImagePolicy, "read_rgb", counted)
    with closing(
        cpu_module.cpu_loader(storage, LoaderOptions(device=CPU), prefetch=prefetch)
    ) as loader:
        batches = loader.iterate(plan)
        next(batches)
        settled(lambda: second <= asked | made)
        time.sleep(0.05)
        assert made == (first if prefetch is None else first | second)
        assert asked == (second if prefetch is None else set())
        next(batches)
        settled(lambda: third <= asked | made)
        assert third <= (asked if prefetch is None else made)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="cannot ask for reading ahead here")
def test_reading_ahead_ends_when_its_batch_is_due(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files that take long to open, the one thread is not kept from making the batch."""
    storage = open_split(class_folders, "train")
    plan = train_plan(storage)
    asked: list[int] = []

    def slow(_: ImageFiles, index: int) -> None:
        asked.append(index)
        time.sleep(0.2)

    monkeypatch.setattr(ImageFiles, "will_need", slow)
    with closing(cpu_module.cpu_loader(storage, LoaderOptions(device=CPU, workers=1))) as loader:
        batches = loader.iterate(plan)
        next(batches)
        settled(lambda: bool(asked))
        second = next(batches)
        of_second = [index for index in asked if index in second.index.tolist()]
        assert 0 < len(of_second) < plan.batch_size / 2


def settled(done: Callable[[], bool]) -> None:
    """Waits until it is so, but not for ever."""
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.01)


def test_beside_a_gpu_batches_are_made_ahead(class_folders: Path) -> None:
    storage = open_split(class_folders, "train")
    gpu = LoaderOptions(device=torch.device("cuda", 0))
    with closing(cpu_module.cpu_loader(storage, gpu, processes=0)) as loader:
        assert loader._prefetch == 2


@pytest.mark.parametrize("where", ["folder", "packed"])
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="cannot ask for reading ahead here")
def test_asking_for_what_will_be_needed(
    where: str, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a hint: the bytes are the same, and a file that has gone is for `read` to report."""
    storage = open_split(class_folders, "train")
    asked = stored("ffcv" if where == "packed" else "cpu", storage)
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *part: told.append(part))
    for index in range(len(asked)):
        before = bytes(asked.read(index))
        asked.will_need(index)
        assert bytes(asked.read(index)) == before
        start, length, advice = told.pop()
        with open(asked.file_of(index) if where == "folder" else asked.root, "rb") as file:
            file.seek(start)
            assert file.read(length or None) == before
        assert advice == os.POSIX_FADV_WILLNEED
    replace(storage, paths=["gone/0.jpg"]).will_need(0)


def test_decoding_is_bit_equal_to_pil(photos: Path) -> None:
    storage = open_split(photos, "train")
    for index in range(0, len(storage), 5):
        ours = read_rgb(storage, index)
        np.testing.assert_array_equal(ours, np.asarray(open_with_pil(storage.file_of(index))))


def test_batches_stay_whole_while_they_are_held(class_folders: Path) -> None:
    """Memory of batches is used again, but never while a batch, or a view of it, is still held."""
    storage = open_split(class_folders, "train")
    plan = train_plan(storage)
    with closing(make_loader("cpu", storage)) as loader:
        held = [batch.crops[0][:, 1] for batch in loader.iterate(plan)]
        copies = [view.clone() for view in held]
        addresses = {view.untyped_storage().data_ptr() for view in held}
        for batch in loader.iterate(plan, 1):
            assert batch.crops[0].untyped_storage().data_ptr() not in addresses
        assert all(torch.equal(view, copy) for view, copy in zip(held, copies, strict=True))
        del held, batch
        again = {b.crops[0].untyped_storage().data_ptr() for b in loader.iterate(plan, 2)}
    assert again & addresses
