"""Networks that cannot take a size, and parts of one image, are named before any work."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.doctor.doctor import diagnose
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.knn import knn
from fastsimsiam.models.backbones import classifier_name
from fastsimsiam.models.image_size import require_image_size
from fastsimsiam.train.checks import require_possible
from fastsimsiam.train.pretrain import pretrain

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("arch", "size", "advised"),
    [("alexnet", 32, 64), ("vit_b_32", 32, 224), ("vit_b_32", 256, 224), ("vgg11", 16, 32)],
)
def test_the_size_in_the_message_works(arch: str, size: int, advised: int) -> None:
    with pytest.raises(UserError) as caught:
        require_image_size(arch, size)
    assert f"--arch {arch} cannot take images of {size} x {size} pixels (" in str(caught.value)
    assert f"pass --image-size {advised}, or another --arch" in str(caught.value)
    require_image_size(arch, advised)


@pytest.mark.parametrize(
    "arch", ["resnet18", "tiny_resnet", "shufflenet_v2_x0_5", "regnet_y_400mf"]
)
def test_a_size_that_fits_passes_without_changing_random_numbers(arch: str) -> None:
    state = torch.get_rng_state()
    for size in (1, 32, 224):
        with contextlib.suppress(UserError) if size == 1 else contextlib.nullcontext():
            require_image_size(arch, size)
    assert torch.equal(torch.get_rng_state(), state)
    assert classifier_name(arch) == "fc"


def test_nothing_is_opened_before_the_size_is_checked(tiny_config: Config, tmp_path: Path) -> None:
    config = replace(tiny_config, arch="alexnet", data=tmp_path / "nowhere")
    with pytest.raises(UserError, match="pass --image-size 64"):
        pretrain(config)
    with pytest.raises(UserError, match="pass --image-size 64"):
        diagnose(config)
    small = replace(config, image_size=64, views=(ViewSpec(), ViewSpec(), ViewSpec(size=32)))
    with pytest.raises(UserError, match=r"pass --views\.2\.size 64"):
        pretrain(small)


def test_evaluations_check_the_size(tiny_config: Config, tmp_path: Path) -> None:
    path = tmp_path / "alexnet.pt"
    from fastsimsiam.models.backbones import feature_extractor

    torch.save(feature_extractor("alexnet")[0].state_dict(), path)
    with pytest.raises(UserError, match="--arch alexnet cannot take images of 32 x 32 pixels"):
        knn(path, tmp_path, options=EvalOptions(arch="alexnet", image_size=32))


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "message"),
    [
        (1, 1, 1, "--batch-size 1 is one image at a time.*give --batch-size 2 or more"),
        (4, 4, 1, "--batch-size 4 in 4 parts is one image.*give --batch-size 8 or more"),
        (4, 2, 2, "--batch-size 4 in 4 parts is one image.*give --batch-size 8 or more"),
        (6, 1, 4, "--batch-size 6 cannot be shared by 4 processes.*give a multiple of 4"),
    ],
)
def test_a_part_of_one_image_is_refused(
    batch: int, accumulate: int, processes: int, message: str, tiny_config: Config
) -> None:
    config = replace(tiny_config, batch_size=batch, accumulate=accumulate)
    with pytest.raises(UserError, match=message):
        require_possible(config, CPU, processes)
    require_possible(replace(config, batch_size=2 * accumulate * processes), CPU, processes)


def test_several_gpus_take_statistics_together(tiny_config: Config) -> None:
    require_possible(replace(tiny_config, batch_size=4), torch.device("cuda"), 4)
