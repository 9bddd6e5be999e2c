"""The compiled part of a step: crops and parameters in, loss and figures out."""

import torch
from torch import Tensor, nn

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.methods.base import Method


class TrainStep(nn.Module):
    """Photometric part, method and loss as one module, so that one graph holds them."""

    def __init__(
        self, photometric: Photometric, method: Method, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Takes the parts, and the dtype of the method's arithmetic (bfloat16: autocast)."""
        super().__init__()
        self.photometric = photometric
        self.method = method
        self._device_type = device.type
        self._dtype = dtype

    def forward(
        self, crops: tuple[Tensor, ...], photometric: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `loaders.batch.Batch` for the arguments and `Method.forward` for the result."""
        views = self.photometric(crops, photometric)
        with torch.autocast(self._device_type, self._dtype, enabled=self._dtype != torch.float32):
            loss, figures = self.method(views)
        return loss, figures
