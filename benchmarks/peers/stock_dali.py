"""Two views with DALI's own operators on the CPU: one decode, two `random_resized_crop`s."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvidia.dali import fn, pipeline_def, types


@pipeline_def
def _two_views(root: str) -> Any:
    files, _ = fn.readers.file(file_root=root, random_shuffle=True, name="reader")
    frames = fn.decoders.image(files, device="cpu", output_type=types.RGB)
    return tuple(
        fn.random_resized_crop(frames, size=224, random_area=[0.2, 1.0], antialias=True)
        for _ in range(2)
    )


def stock_dali_batches(root: Path, batch_size: int, workers: int) -> Iterator[Any]:
    """Batches of two 224-pixel crops of each image, without end.

    Args:
        root: class folders.
        batch_size: images per batch.
        workers: number of threads.
    """
    pipeline = _two_views(
        str(root),
        batch_size=batch_size,
        num_threads=workers,
        device_id=None,
        prefetch_queue_depth=2,
    )
    pipeline.build()
    while True:
        yield pipeline.run()
