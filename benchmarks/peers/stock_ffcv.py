"""Two views with FFCV's own operators: one pipeline per view, each with its own decode."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.transforms import ToTensor


def stock_ffcv_loader(file: Path, batch_size: int, workers: int) -> Iterator[Any]:
    """Batches of two 224-pixel crops of each image, as in FFCV-SSL.

    Args:
        file: a .beton file with fields `image` and `label`.
        batch_size: images per batch.
        workers: number of threads.
    """

    def view() -> PipelineSpec:
        decoder = RandomResizedCropRGBImageDecoder((224, 224), scale=(0.2, 1.0))
        return PipelineSpec("image", decoder=decoder, transforms=[ToTensor()])

    return Loader(  # type: ignore[no-any-return]
        str(file),
        batch_size=batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": view(), "image_1": view(), "label": None},
    )
