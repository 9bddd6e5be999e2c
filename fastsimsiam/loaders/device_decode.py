"""JPEG decoding on the device by torchcodec: nvJPEG on a GPU, libjpeg-turbo on a CPU.

nvJPEG differs from libjpeg-turbo by a few gray levels in chroma. torchcodec is an optional dependency,
imported when a frame is to be decoded. torchvision's `decode_jpeg` did the same; it is deprecated.
"""

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from fastsimsiam.errors import UserError
from fastsimsiam.system.optional import require_torchcodec


def decode_jpegs(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decodes JPEGs in one call: one by one nvJPEG takes four times as long (vision pull 8496).

    The host waits until the frames are decoded.

    Args:
        files: encoded bytes (N,) uint8 of each image, in host memory.
        device: a GPU or the CPU.

    Returns:
        RGB frames (H, W, 3) uint8 on `device`, on the current stream.

    Raises:
        RuntimeError: a file cannot be decoded; the message does not say which.
    """
    from torchcodec.decoders import decode_jpeg

    if device.type == "cuda":
        # The JPEG engine of an H100 ignores its stream: it writes at once, even into memory that queued
        # kernels still read. torchcodec waits by itself since 0.17
        # (github.com/meta-pytorch/torchcodec/pull/1634); until that is measured here, the loader's
        # thread, which has nothing else to do, waits as well.
        torch.cuda.current_stream(device).synchronize()
    frames = decode_jpeg(files, mode="RGB", device=device)
    return [frame.permute(1, 2, 0) for frame in frames]


def require_device_decoder(device: torch.device, why: str) -> None:
    """Decodes a small JPEG, to fail at the start of a run if torchcodec cannot.

    Args:
        device: where frames are going to be decoded.
        why: the option that needs it.

    Raises:
        UserError: torchcodec is not installed, does not load, is too old or has no nvJPEG.
    """
    require_torchcodec(why)
    image = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8), colorspace="RGB")
    try:
        decode_jpegs([torch.frombuffer(bytearray(image), dtype=torch.uint8)], device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{why}: torchcodec cannot decode on {device} ({reason}): pass --loader cpu"
        ) from error
