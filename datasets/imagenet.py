"""Unpacks ImageNet (ILSVRC 2012) to DEST/train/WNID and DEST/val/WNID.

Put the three official files, which need a registration at https://image-net.org/download.php,
into one folder and pass it as --archives:
ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz.

Needs SciPy (the labels are in a MATLAB file) and about 160 GB of free space beside the archives. An
interrupted run continues: classes that are complete in DEST.partial are skipped.
"""

import argparse
import importlib
import io
import re
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from _archive import Splits, extract, is_complete, miscount, opened, publish, run
from _download import DataError, md5_of, writing

NAME = "ILSVRC2012"
DEVKIT, TRAIN, VAL = f"{NAME}_devkit_t12.tar.gz", f"{NAME}_img_train.tar", f"{NAME}_img_val.tar"
MD5S = {
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
}
SPLITS = {"train": (1000, 1_281_167), "val": (1000, 50_000)}


def read_meta(content: bytes) -> dict[int, str]:
    """Returns ILSVRC2012_ID -> WNID of the classes that have images, from meta.mat."""
    try:
        scipy_io = importlib.import_module("scipy.io")
    except ImportError:
        raise DataError("SciPy is missing: run python -m pip install scipy") from None
    try:
        return {  # synsets with children are higher levels of WordNet
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in scipy_io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
            if int(synset["num_children"]) == 0
        }
    except scipy_io.matlab.MatReadError as error:
        raise ValueError(str(error)) from error


def read_devkit(archive: Path) -> tuple[dict[int, str], list[str]]:
    """Returns ILSVRC2012_ID -> WNID, and the WNIDs of the validation images in order."""

    def read(tar: tarfile.TarFile, name: str) -> bytes:
        file = tar.extractfile(f"{NAME}_devkit_t12/data/{name}")
        return file.read() if file else b""

    with opened(archive) as (tar, _):
        try:
            wnids = read_meta(read(tar, "meta.mat"))
            truth = read(tar, "ILSVRC2012_validation_ground_truth.txt").split()
            return wnids, [wnids[int(label)] for label in truth]
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(f"cannot read {archive} ({error!r}): download it again") from error


def unpack_train(archive: Path, folder: Path, wnids: Mapping[int, str]) -> None:
    """Unpacks each class's tar from within the outer one, without a copy on the disk."""
    known = set(wnids.values())
    with opened(archive) as (outer, tick):
        for member in outer:
            wnid = PurePosixPath(member.name).stem
            if wnid not in known or not member.isfile():
                raise DataError(f"{archive} holds {member.name}: download {TRAIN} again")
            if (folder / wnid).is_dir():
                continue
            temporary = folder / f"{wnid}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as tar:
                extract(tar, temporary, lambda name: PurePosixPath(name).name, tick)
            with writing(folder / wnid):
                temporary.rename(folder / wnid)


def unpack_val(archive: Path, folder: Path, labels: list[str]) -> None:
    """Unpacks the validation images into one folder per class."""

    def place(name: str) -> str:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", PurePosixPath(name).name)
        if not match or not 1 <= int(match[1]) <= len(labels):
            raise DataError(f"{archive} holds {name}: download {VAL} again")
        return f"{labels[int(match[1]) - 1]}/{match[0]}"

    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with opened(archive) as (tar, tick):
        extract(tar, temporary, place, tick)
    with writing(folder):
        temporary.rename(folder)


def check(archive: Path, md5s: Mapping[str, str]) -> Path:
    """Checks the MD5 of an archive, if `md5s` has one; returns its path."""
    if archive.name in md5s and (got := md5_of(archive)) != md5s[archive.name]:
        raise DataError(f"{archive} is damaged (MD5 {got}): download it again from image-net.org")
    return archive


def build(archives: Path, dest: Path, md5s: Mapping[str, str], splits: Splits) -> None:
    """Installs ImageNet in `dest`; does nothing if it is complete already."""
    dest = dest.expanduser().resolve()
    if is_complete(dest, NAME, splits):
        return
    missing = [name for name in (DEVKIT, TRAIN, VAL) if not (archives / name).is_file()]
    if missing:
        raise DataError(
            f"{archives} lacks {', '.join(missing)}: register at https://image-net.org/download.php"
            ", download the missing files and put them there"
        )
    wnids, labels = read_devkit(check(archives / DEVKIT, md5s))
    partial = dest.with_name(f"{dest.name}.partial")
    train, val = partial / "train", partial / "val"
    with writing(partial):
        train.mkdir(parents=True, exist_ok=True)
    # The MD5 takes minutes: only archives that are about to be unpacked are checked.
    if {path.name for path in train.iterdir()} != set(wnids.values()):
        unpack_train(check(archives / TRAIN, md5s), train, wnids)
    if not val.is_dir():
        unpack_val(check(archives / VAL, md5s), val, labels)
    if problem := miscount(partial, splits):
        raise DataError(f"{problem}: remove {partial}, download the archives again and run again")
    publish(partial, dest, NAME, splits)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archives", type=Path, required=True, help="folder of the three files")
    parser.add_argument(
        "--dest", type=Path, default=Path("data/imagenet"), help="default: %(default)s"
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not check the archives' MD5s"
    )
    args = parser.parse_args()
    build(args.archives, args.dest, MD5S if args.verify else {}, SPLITS)


if __name__ == "__main__":
    raise SystemExit(run(main))
