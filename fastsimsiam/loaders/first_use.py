"""Which images another decoder than libjpeg-turbo may decode.

nvJPEG and DALI are silent about damage, and show a guess. So at its first use each JPEG is decoded by
`BadImagePolicy.read_rgb` too: it is then broken, or warned of, as in all other loaders. What is left to
the other decoder depends on the image alone, not on its batch or on earlier epochs, so a resumed run
shows the same pixels.
"""

import numpy as np

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.jpeg_header import is_plain_jpeg
from fastsimsiam.storage.base import Storage

_UNSEEN, _LEFT_TO_IT, _AS_PIXELS = range(3)


class FirstUse:
    """The verdict on each image of a storage."""

    def __init__(self, storage: Storage, policy: BadImagePolicy, *, check: bool) -> None:
        """Takes the images and the policy of a loader.

        Args:
            storage: the images.
            policy: decodes them.
            check: decode each image at its first use; otherwise only its header is looked at.
        """
        self._storage = storage
        self._policy = policy
        self._check = check
        self._verdict = np.zeros(len(storage), np.uint8)

    def is_left_to_it(self, index: int, data: memoryview) -> bool:
        """Whether the other decoder may decode an image; if not, the loader decodes it by the policy.

        Args:
            index: number of the image.
            data: its encoded bytes; in memory that this call may overwrite.

        Raises:
            BadImageError: the image is broken.
        """
        if self._verdict[index] == _AS_PIXELS or not is_plain_jpeg(self._storage, index, data):
            return False
        if self._check and self._verdict[index] == _UNSEEN:
            self._policy.read_rgb(self._storage, index)
            warned = self._storage.name(index) in self._policy.warned_images
            self._verdict[index] = _AS_PIXELS if warned else _LEFT_TO_IT
        return not self.is_taken_back(index)

    def take_back(self, index: int) -> None:
        """Notes that the other decoder refuses an image."""
        self._verdict[index] = _AS_PIXELS

    def is_taken_back(self, index: int) -> bool:
        """Whether an image is no longer left to the other decoder."""
        return bool(self._verdict[index] == _AS_PIXELS)
