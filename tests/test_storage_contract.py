"""One contract for every storage: the same images give the same views through every loader."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from as_stored import (
    datasets_cache,
    files_of,
    imagenet_tars,
    saved_to_disk,
    shards,
    tar_of_class_folders,
)
from conftest import CPU, require
from PIL import Image

from fastsimsiam.config.run import Config, LoaderName
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.doctor.synthetic import textured_image
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.open import open_split
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.train.pretrain import pretrain

LOADERS: tuple[LoaderName, ...] = ("cpu", "resident", "reference", "dali")


def listed(data: Path, target: Path) -> Path:
    """A CSV of the training images."""
    rows = [f"{file},{file.parent.name}" for file in files_of(data / "train")]
    target.mkdir()
    (target / "train.csv").write_text("\n".join(rows))
    return target / "train.csv"


def packed(data: Path, target: Path) -> Path:
    """A packed file, with the bytes of the images."""
    target.mkdir()
    manifest = pack(open_split(data, "train"), target / "train.beton", PackOptions(), workers=1)
    assert manifest["images_with_their_own_bytes"] == manifest["images_total"]
    return target


def unlabeled(data: Path, target: Path) -> Path:
    """A folder of images without classes."""
    target.mkdir()
    for number, file in enumerate(files_of(data / "train")):
        (target / f"{number:03d}.jpg").symlink_to(file)
    return target


def shards_without_labels(data: Path, target: Path) -> Path:
    """WebDataset's shards, of captions for instance."""
    return shards(data, target, label="")


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    form.__name__: form
    for form in (
        imagenet_tars,
        shards,
        shards_without_labels,
        tar_of_class_folders,
        saved_to_disk,
        datasets_cache,
        listed,
        packed,
        unlabeled,
    )
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 6 validation JPEGs of 3 classes, of many sizes."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(3)
    for split, count in (("train", 16), ("val", 2)):
        for name in ("ant", "bee", "cow"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(30, 90, 2).tolist()
                image = textured_image(rng, height, width)
                image.save(root / split / name / f"{number:02d}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def stored(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the images in a form, once."""
    made: dict[str, Path] = {}

    def in_form(form: str) -> Path:
        if form not in made:
            made[form] = FORMS[form](folders, tmp_path_factory.mktemp(form) / "data")
        return made[form]

    return in_form


def views(name: LoaderName, storage: Storage) -> list[torch.Tensor]:
    """The crops of two epochs."""
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=1,
        specs=(ViewSpec(), ViewSpec(size=20)),
        image_size=32,
        batch_size=16,
    )
    found = []
    with closing(build_loader(name, storage, LoaderOptions(device=CPU, workers=2))) as loader:
        for epoch in (0, 1):
            for batch in loader.iterate(plan, epoch):
                found += [crop.clone() for crop in batch.crops]
                found += [batch.index.clone()]
    return found


@pytest.fixture(scope="module")
def expected() -> dict[LoaderName, list[torch.Tensor]]:
    """The views of class folders, by loader; filled when they are first asked for."""
    return {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOADERS)
def test_views_are_those_of_class_folders_to_the_bit(
    folders: Path,
    stored: Callable[[str], Path],
    expected: dict[LoaderName, list[torch.Tensor]],
    name: LoaderName,
    form: str,
) -> None:
    if name == "dali":
        require("dali")
    if name not in expected:
        expected[name] = views(name, open_split(folders, "train"))
    found = views(name, open_split(stored(form), "train"))
    assert len(found) == len(expected[name]) > 0
    for ours, theirs in zip(found, expected[name], strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


@pytest.mark.parametrize("name", LOADERS)
def test_views_of_an_array_are_those_of_its_images(tmp_path: Path, name: LoaderName) -> None:
    if name == "dali":
        require("dali")
    images = np.random.default_rng(0).integers(0, 256, (32, 40, 36, 3), dtype=np.uint8)
    (tmp_path / "png" / "all").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "png" / "all" / f"{number:02d}.png")
    np.save(tmp_path / "array.npy", images)
    of_files = views(name, open_split(tmp_path / "png", "train"))
    of_array = views(name, open_split(tmp_path / "array.npy", "train"))
    for ours, theirs in zip(of_array, of_files, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def losses(out: Path) -> list[str]:
    """The loss of each step of a run, to the bit."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [line.partition('"loss": ')[2].partition(",")[0] for line in lines if '"loss": ' in line]


def test_three_steps_have_the_same_loss(
    folders: Path, stored: Callable[[str], Path], tiny_config: Config, tmp_path: Path
) -> None:
    found = {}
    for form in ("folders", *FORMS):
        data = folders if form == "folders" else stored(form)
        config = replace(
            tiny_config, data=data, out=tmp_path / form, max_steps=3, epochs=1, log_every=1
        )
        pretrain(config)
        found[form] = losses(config.out)
    assert len(found["folders"]) == 3
    assert set(map(tuple, found.values())) == {tuple(found["folders"])}


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_goes_on_as_if_it_had_not_stopped(
    folders: Path,
    stored: Callable[[str], Path],
    tiny_config: Config,
    tmp_path: Path,
    form: str,
    shuffle: Literal["full", "blocks"],
) -> None:
    """In any form that is resumed, in both orders; with other images it is refused."""
    if shuffle == "blocks" and open_split(stored(form), "train").blocks is None:
        pytest.skip("images that are files of their own have no blocks")
    config = replace(tiny_config, data=stored(form), epochs=2, log_every=1, shuffle=shuffle)
    config = replace(config, shuffle_blocks=2)
    pretrain(replace(config, out=tmp_path / "whole", max_steps=4))
    pretrain(replace(config, out=tmp_path / "run", max_steps=2))
    resumed = replace(config, out=tmp_path / "run", max_steps=4)
    assert pretrain(resumed, resume=True).steps == 4
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    if shuffle == "full":
        with pytest.raises(UserError, match="training images changed"):
            pretrain(replace(resumed, data=folders / "val", max_steps=5), resume=True)
