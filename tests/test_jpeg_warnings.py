"""What the decoder warns of: which warnings are about the data, and that none is lost."""

import io
import json
import re
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU, open_with_pil, require
from PIL import Image

from fastsimsiam.cli import main
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.dali_loader import DaliLoader
from fastsimsiam.loaders.frame_loader import FrameLoader
from fastsimsiam.loaders.frame_threads import FrameThreads
from fastsimsiam.loaders.jpeg_header import plain_size
from fastsimsiam.loaders.jpeg_warning import JpegWarning, jpeg_warning
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import manifest_path, open_beton
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.train.pretrain import pretrain

LOADERS = [
    "cpu",
    "resident",
    "reference",
    "frames",
    "frames-decoded-on-device",
    "dali",
    "dali-crops",
]


def jpeg(seed: int = 0, **options: object) -> bytes:
    """A rough JPEG of 48x64 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    image.convert(options.pop("mode", "RGB")).save(file, "JPEG", **options)
    return file.getvalue()


def padded(content: bytes) -> bytes:
    """Zeros between the data and the end marker."""
    return content[:-2] + bytes(40) + content[-2:]


def left_over(content: bytes) -> bytes:
    """Data between the last block and the end marker, as after a bit that was flipped."""
    return content[:-2] + bytes(range(1, 60)) + content[-2:]


def new_jfif(content: bytes) -> bytes:
    """An unknown version of JFIF."""
    assert content[6:10] == b"JFIF"
    return content[:11] + b"\x09" + content[12:]


def junk(content: bytes) -> bytes:
    """Bytes between two segments."""
    return content[:20] + b"abc" + content[20:]


def adobe(content: bytes) -> bytes:
    """An unknown color transform of Adobe."""
    return content[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x05" + content[20:]


def odd_scan(content: bytes) -> bytes:
    """Parameters of a scan that a sequential JPEG does not use."""
    changed = bytearray(content)
    scan = content.index(b"\xff\xda")
    changed[scan + 2 + content[scan + 3] - 3] = 7
    return bytes(changed)


def broken_code(content: bytes) -> bytes:
    """Data with a code that is in no table; found by trying."""
    rng = np.random.default_rng(0)
    start = content.index(b"\xff\xda") + 14
    for _ in range(2000):
        changed = bytearray(content)
        place = int(rng.integers(start, len(content) - 40))
        changed[place : place + 3] = rng.integers(0, 255, 3, dtype=np.uint8).tobytes()
        warning = jpeg_warning(memoryview(bytes(changed)))
        if warning and "bad Huffman code" in warning.text:
            return bytes(changed)
    raise AssertionError("no such damage found")


@pytest.mark.parametrize(
    ("damage", "text", "in_data"),
    [
        (bytes, None, False),
        (padded, "extraneous bytes before marker 0xd9", False),
        (new_jfif, "unknown JFIF revision number 9", False),
        (junk, "3 extraneous bytes before marker 0xdb", False),
        (adobe, "Unknown Adobe color transform code 5", False),
        (odd_scan, "Invalid SOS parameters for sequential JPEG", False),
        (left_over, "extraneous bytes before marker 0xd9", True),
        (broken_code, "bad Huffman code", True),
        (lambda content: new_jfif(left_over(content)), "bytes before marker 0xd9", True),
        (lambda content: junk(broken_code(content)), "bad Huffman code", True),
        (lambda content: odd_scan(adobe(padded(content))), "Unknown Adobe", False),
    ],
)
def test_warnings_about_the_data_are_told_from_harmless_ones(
    damage: object, text: str | None, in_data: bool
) -> None:
    content = damage(jpeg())
    open_with_pil(io.BytesIO(content))  # PIL says nothing
    warning = jpeg_warning(memoryview(content))
    if text is None:
        assert warning is None
    else:
        assert isinstance(warning, JpegWarning)
        assert text in warning.text
        assert warning.in_data is in_data
        assert str(warning).startswith("harmless: ") is not in_data


@pytest.fixture
def warned(tmp_path: Path) -> Path:
    """20 images: in the data of two there is damage, three have a harmless warning."""
    changes = {3: left_over, 4: padded, 8: new_jfif, 9: broken_code, 15: odd_scan}
    for number in range(20):
        folder = tmp_path / "train" / f"{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        content = changes.get(number, bytes)(jpeg(number))
        (folder / f"{number:02d}.jpg").write_bytes(content)
    return tmp_path


HARMLESS, IN_DATA = {"04.jpg", "08.jpg", "15.jpg"}, {"03.jpg", "09.jpg"}


def named(images: dict[str, str]) -> set[str]:
    """The file names in reports."""
    return {Path(path).name for path in images}


def make(name: str, storage: Storage, on_bad_image: str = "error", check: bool = True) -> Loader:
    """A loader for files."""
    library = name.partition("-")[0]
    if library == "dali":
        require("dali")
    if name == "frames-decoded-on-device":
        require("torchcodec")
    options = LoaderOptions(device=CPU, workers=2, on_bad_image=on_bad_image, check_images=check)
    if library == "frames":
        source = FrameThreads(storage, options, decode_on_device=name != "frames")
        return FrameLoader(source, CPU)
    if name == "dali-crops":
        return DaliLoader(storage, options, crop_in_dali=True)
    return build_loader(name, storage, options)


def plan_of(storage: Storage, batch_size: int = 20) -> TrainPlan:
    """Two views of 32 pixels."""
    return TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=1,
        image_size=32,
        specs=(ViewSpec(), ViewSpec()),
        batch_size=batch_size,
    )


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_counts_warnings_and_refuses_them_if_it_is_told_to(
    name: str, warned: Path
) -> None:
    storage = open_split(warned, "train")
    plan = plan_of(storage)
    with closing(make(name, storage)) as loader:
        (batch,) = loader.iterate(plan)
        assert named(loader.warned_images) == HARMLESS | IN_DATA
        harmless = {path for path, text in loader.warned_images.items() if "harmless: " in text}
        assert named(dict.fromkeys(harmless)) == HARMLESS
        assert not loader.bad_images
        again = next(iter(loader.iterate(plan)))  # when all have been used before
    np.testing.assert_array_equal(batch.index, again.index)
    assert batch.crops[0].equal(again.crops[0])
    message = r"0[39]\.jpg cannot be decoded \(Corrupt JPEG.*pass --on-bad-image skip-strict"
    with (
        pytest.raises(BadImageError, match=message),
        closing(make(name, storage, "error-strict")) as loader,
    ):
        list(loader.iterate(plan))
    with closing(make(name, storage, "skip-strict")) as loader:
        (batch,) = loader.iterate(plan)
        assert named(loader.bad_images) == IN_DATA
        # Used in place of others too, and reported once.
        assert named(loader.warned_images) == HARMLESS
    shown = {storage.file_of(index).name for index in batch.index.tolist()}
    assert shown == {f"{number:02d}.jpg" for number in range(20)} - IN_DATA


@pytest.mark.parametrize("name", ["dali", "frames-decoded-on-device"])
def test_the_guess_that_is_shown_is_that_of_the_other_loaders(name: str, warned: Path) -> None:
    storage = open_split(warned, "train")
    with closing(make("frames", storage)) as loader:
        wanted = next(iter(loader.iterate(plan_of(storage)))).crops[0]
    with closing(make(name, storage)) as loader:
        shown = next(iter(loader.iterate(plan_of(storage)))).crops[0]
        # nvJPEG's guess is another one; that of DALI on the CPU may be the same.
        judged = getattr(loader, "_source", loader)._first_use
        own = {n for n in range(len(storage)) if judged.is_taken_back(n)}
    assert {storage.file_of(number).name for number in own} == HARMLESS | IN_DATA
    assert (shown.int() - wanted.int()).abs().max() <= 2


@pytest.mark.parametrize("name", ["dali", "dali-crops", "frames-decoded-on-device"])
def test_what_another_decoder_refuses_does_not_change_its_neighbors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is given to it alone, and stays with it if it can decode it."""
    for number in range(12):
        folder = tmp_path / "k"
        folder.mkdir(exist_ok=True)
        content = bytearray(jpeg(number))
        if number == 7:
            lengths = content.find(b"\xff\xc4") + 5
            content[lengths : lengths + 16] = b"\xff" * 16  # a Huffman table that cannot be
        (folder / f"{number:02d}.jpg").write_bytes(content)
    storage = open_split(tmp_path, "train")
    decoded_here: list[int] = []
    decode = BadImagePolicy.read_rgb

    def noting(policy: BadImagePolicy, storage: Storage, index: int) -> np.ndarray:
        decoded_here.append(index)
        return decode(policy, storage, index)

    monkeypatch.setattr(BadImagePolicy, "read_rgb", noting)
    with closing(make(name, storage, "skip", check=False)) as loader:
        batches = list(loader.iterate(plan_of(storage, 6)))
        assert named(loader.bad_images) == {"07.jpg"}
    assert [len(batch.index) for batch in batches] == [6, 6]
    assert set(decoded_here) == {7}


@pytest.mark.parametrize("name", ["dali", "dali-crops", "frames-decoded-on-device"])
@pytest.mark.parametrize("on_bad_image", ["skip", "skip-strict"])
def test_a_resumed_epoch_is_that_of_the_whole_run(
    name: str, on_bad_image: str, warned: Path
) -> None:
    (warned / "train" / "1" / "11.jpg").write_bytes(jpeg(11)[:-300])
    storage = open_split(warned, "train")
    plan = plan_of(storage, 4)
    with closing(make(name, storage, on_bad_image)) as loader:
        list(loader.iterate(plan, 0))
        whole = list(loader.iterate(plan, 1))
    with closing(make(name, storage, on_bad_image)) as loader:
        rest = list(loader.iterate(plan, 1, 2))
    assert len(rest) == len(whole) - 2
    for one, two in zip(whole[2:], rest, strict=True):
        for a, b in zip(one.tensors(), two.tensors(), strict=True):
            assert a.equal(b)


def test_evaluation_says_what_the_decoder_warned_of(
    tiny_config: Config, warned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny_config, data=warned, batch_size=10, epochs=1, max_steps=1)
    pretrain(config)
    capsys.readouterr()
    shutil.copytree(warned / "train", warned / "val")
    options = ["--device", "cpu", "--k", "3", "--loader", "cpu"]
    assert main(["knn", str(config.out), "--data", str(warned), *options]) == 0
    assert "the decoder warned of 10 images, of the data of 4" in capsys.readouterr().err
    strict = ["--on-bad-image", "error-strict"]
    assert main(["knn", str(config.out), "--data", str(warned), *options, *strict]) == 2
    assert re.search(r"0[39]\.jpg cannot be decoded .*skip-strict", capsys.readouterr().err)


def test_a_run_names_warnings_in_log_and_summary(tiny_config: Config, warned: Path) -> None:
    config = replace(tiny_config, data=warned, batch_size=10, epochs=1, max_steps=2)
    summary = pretrain(config)
    assert named(dict(summary.warned_images)) == HARMLESS | IN_DATA
    log = (config.out / "log.txt").read_text()
    assert "the decoder warned of 5 images, of the data of 2, whose pixels may be wrong" in log
    assert re.search(r"warned: .*09\.jpg \(Corrupt JPEG data: bad Huffman code\)", log)
    stored = json.loads((config.out / "summary.json").read_text())
    assert stored["warned_images"] == summary.warned_images
    with pytest.raises(UserError, match="pass --on-bad-image skip-strict"):
        pretrain(replace(config, on_bad_image="error-strict", out=config.out / "strict"))


def test_pack_lists_warnings_and_copies_no_such_bytes(
    warned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a.beton"
    assert main(["pack", str(warned / "train"), str(target)]) == 0
    assert "the decoder warned of 5 images, of the data of 2" in capsys.readouterr().out
    manifest = json.loads(manifest_path(target).read_text())
    assert named(manifest["warned"]) == HARMLESS | IN_DATA
    assert manifest["images_with_their_own_bytes"] == 15
    assert main(["pack", "--verify", str(target)]) == 0
    out = capsys.readouterr().out
    assert "the decoder warned of 5 images" in out
    assert "09.jpg: Corrupt JPEG data: bad Huffman code" in out
    storage = open_split(warned, "train")
    with pytest.raises(BadImageError, match=r"0[39]\.jpg cannot be decoded .* skip-strict"):
        pack(storage, target, PackOptions(), on_bad_image="error-strict")
    strict = pack(storage, target, PackOptions(), on_bad_image="skip-strict")
    assert named(strict["left_out"]) == IN_DATA
    assert named(strict["warned"]) == HARMLESS


def test_packed_files_are_right_for_ffcvs_own_decoder(tmp_path: Path) -> None:
    """It ignores Adobe's segment and the decoder's return code."""
    require("ffcv")
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader as FfcvsLoader
    from ffcv.loader import OrderOption

    folder = tmp_path / "k"
    folder.mkdir()
    plain = jpeg(1, quality=95)
    for name, content in {
        "0plain": plain,
        "1gray": jpeg(2, mode="L"),
        "2cmyk": jpeg(3, mode="CMYK", quality=95),
        "3progressive": jpeg(4, progressive=True),
        "4rgb": jpeg(5, quality=95, keep_rgb=True),
        "5trailing": jpeg(6) + bytes(5000),
        "6jfif": new_jfif(jpeg(7)),
    }.items():
        (folder / f"{name}.jpg").write_bytes(content)
    storage = open_split(tmp_path, "train")
    target = tmp_path / "a.beton"
    manifest = pack(storage, target, PackOptions(quality=95))
    assert manifest["images_with_their_own_bytes"] == 4  # plain, gray, progressive, trailing
    beton = open_beton(target)
    for index in range(len(beton)):
        assert plain_size(beton.read(index)) == (48, 64)
    loader = FfcvsLoader(
        str(target),
        batch_size=len(beton),
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": None},
    )
    (images, *_) = next(iter(loader))
    for index, shown in enumerate(np.asarray(images)):
        wanted = np.asarray(open_with_pil(storage.file_of(index)), np.int16)
        # Its DCT and its upsampling are the fast ones.
        assert np.abs(shown - wanted).mean() < 4, storage.paths[index]


def test_colors_that_decoders_may_guess_are_not_plain() -> None:
    content = jpeg()
    assert plain_size(memoryview(content)) == (48, 64)
    frame = content.index(b"\xff\xc0")
    for kind in (b"\xff\xc3", b"\xff\xc9", b"\xff\xca"):  # lossless, arithmetic codes
        other = content[:frame] + kind + content[frame + 2 :]
        assert plain_size(memoryview(other)) is None
    deep = bytearray(content)
    deep[frame + 4] = 12
    assert plain_size(memoryview(bytes(deep))) is None
    lettered = bytearray(content)
    for number, letter in enumerate(b"RGB"):
        lettered[frame + 10 + 3 * number] = letter
    assert plain_size(memoryview(bytes(lettered))) == (48, 64)  # JFIF says that it is YCbCr
    assert plain_size(memoryview(bytes(lettered[:2] + lettered[20:]))) is None
    assert plain_size(memoryview(content[:2] + content[20:])) == (48, 64)
    assert plain_size(memoryview(jpeg(mode="CMYK"))) is None
    assert plain_size(memoryview(jpeg(keep_rgb=True))) is None
