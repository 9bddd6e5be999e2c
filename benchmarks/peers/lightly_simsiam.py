"""lightly's SimSiam transform and dataset in a DataLoader, as in its tutorial."""

from pathlib import Path

from lightly.data import LightlyDataset
from lightly.transforms import SimSiamTransform
from torch.utils.data import ConcatDataset, DataLoader, Dataset


def lightly_loader(data: Path, times: int, batch_size: int, workers: int) -> DataLoader[object]:
    """Batches ((view, view), label, file name) of 224-pixel views.

    Args:
        data: class folders.
        times: how often the data set is repeated within an epoch.
        batch_size: images per batch.
        workers: number of worker processes.
    """
    once: Dataset[object] = LightlyDataset(str(data), transform=SimSiamTransform(input_size=224))
    return DataLoader(
        ConcatDataset([once] * times),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
    )
