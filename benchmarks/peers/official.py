"""The official recipe's loader as a user would write it: ImageFolder, torchvision's transforms, PIL.

Unlike the `reference` loader it draws its own parameters, and its worker processes return normalized
float tensors.
"""

import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fastsimsiam.config.views import IMAGENET_PIXELS


def blur(image: Image.Image) -> Image.Image:
    """Gaussian blur with a standard deviation drawn from 0.1 to 2 pixels."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class TwoViews:
    """Applies a random transform twice."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        """Keeps the transform."""
        self._transform = transform

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """Returns two views of an image."""
        return [self._transform(image), self._transform(image)]


def color() -> Callable[[Image.Image], Tensor]:
    """The transforms that follow the crop."""
    return transforms.Compose(
        [  # type: ignore[no-any-return]
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([transforms.Lambda(blur)], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_PIXELS.mean, IMAGENET_PIXELS.std),
        ]
    )


def official_loader(data: Path, times: int, batch_size: int, workers: int) -> DataLoader[object]:
    """Batches of two normalized 224-pixel views of each image.

    Args:
        data: class folders.
        times: how often the data set is repeated within an epoch.
        batch_size: images per batch.
        workers: number of worker processes.
    """
    view = transforms.Compose([transforms.RandomResizedCrop(224, scale=(0.2, 1.0)), color()])
    images: Dataset[object] = ConcatDataset([ImageFolder(str(data), TwoViews(view))] * times)
    return DataLoader(
        images, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True
    )
