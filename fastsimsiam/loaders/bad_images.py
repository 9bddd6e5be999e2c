"""Broken images: stop with an error, or replace the sample by another one of the epoch."""

from collections.abc import Callable
from typing import TypeVar

from PIL import Image

from fastsimsiam.config.run import GRAY16_MAX
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.decode import (
    Pixels,
    decode_with_pil,
    jpeg_warning_of,
    other_size,
    read_rgb,
)
from fastsimsiam.loaders.jpeg_warning import JpegWarning
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ATTEMPTS = 20
_Result = TypeVar("_Result")


class BadImagePolicy:
    """Decodes images, runs a loader's work on a sample, and replaces the sample if its image is broken.

    Attributes:
        skip: whether broken images are replaced.
        strict: whether a warning about an image's data makes the image a broken one.
        bad_images: image -> error, for the images that were skipped so far.
        warned_images: image -> warning of the decoder, for those that were used so far nevertheless.
    """

    def __init__(self, on_bad_image: str, gray16_max: int = GRAY16_MAX) -> None:
        """Takes `Config.on_bad_image` and `Config.gray16_max`."""
        action, _, strict = on_bad_image.partition("-")
        assert action in ("error", "skip"), on_bad_image
        assert strict in ("", "strict"), on_bad_image
        self.skip = action == "skip"
        self.strict = bool(strict)
        self.bad_images: dict[str, str] = {}
        self.warned_images: dict[str, str] = {}
        self._gray16_max = gray16_max

    def read_rgb(self, storage: Storage, index: int) -> Pixels:
        """Decodes an image by `decode.read_rgb`, and takes note of the decoder's warning.

        Raises:
            BadImageError: the image is broken.
        """
        return read_rgb(
            storage,
            index,
            gray16_max=self._gray16_max,
            on_warning=lambda warning: self.warn(storage.name(index), warning),
        )

    def open_with_pil(self, storage: Storage, index: int, *, check: bool = True) -> Image.Image:
        """Decodes an image by PIL alone, with the judgement of `read_rgb`.

        Args:
            storage: the images.
            index: number of the image.
            check: look for a warning, by decoding a JPEG once more.

        Returns:
            The upright RGB image.

        Raises:
            BadImageError: the image is broken.
        """
        data = storage.read(index)
        image = decode_with_pil(storage.name(index), data, self._gray16_max)
        warning = jpeg_warning_of(data) if check else None
        turn = _TURNS.get(int(storage.orientation[index]))
        image = image if turn is None else image.transpose(turn)
        if [image.height, image.width] != storage.sizes[index].tolist():
            raise other_size(storage, index, image.height, image.width)
        if warning:
            self.warn(storage.name(index), warning)
        return image

    def warn(self, name: str, warning: JpegWarning) -> None:
        """Takes note of a decoder's warning.

        Raises:
            BadImageError: it is about the image's data, and the policy is strict.
        """
        if self.strict and warning.in_data:
            raise BadImageError(f"{name} cannot be decoded ({warning.text})")
        self.warned_images.setdefault(name, str(warning))

    def refuse(self, error: BadImageError) -> BadImageError:
        """The error for a run that a broken image ends: says what the user can do."""
        return BadImageError(f"{error}: {error.fix}, or pass --on-bad-image {self._skip_option}")

    @property
    def _skip_option(self) -> str:
        return "skip-strict" if self.strict else "skip"

    def require_readable(self, storage: Storage) -> None:
        """Refuses files without a readable header, unless broken images are skipped.

        Raises:
            UserError: names the first such file.
        """
        if not self.skip:
            storage.require_readable(self._skip_option)

    def run(
        self,
        plan: Plan,
        batch: BatchPlan,
        row: int,
        work: Callable[[int], _Result],
        name: Callable[[int], str],
    ) -> _Result:
        """Calls `work` with the sample in row `row` of `batch`, until an image is not broken.

        A replacement overwrites the row's index, label and view parameters. It depends on the epoch
        and the sample only, so that runs are reproducible.

        Args:
            plan: the source of replacements.
            batch: the plan of the batch, changed in place.
            row: row of the sample.
            work: decodes a sample, given by its index.
            name: name of a sample in reports.

        Raises:
            BadImageError: the image is broken and is not to be skipped.
            UserError: twenty samples in a row are broken.
        """
        sample = int(batch.index[row])
        for attempt in range(_ATTEMPTS):
            try:
                return work(int(batch.index[row]))
            except BadImageError as error:
                if not self.skip:
                    raise self.refuse(error) from error
                self.bad_images.setdefault(name(int(batch.index[row])), str(error))
                other = plan.replacement(batch.epoch, sample, attempt)
                batch.index[row] = other.index[0]
                batch.label[row] = other.label[0]
                batch.views.overwrite_row(row, other.views)
        raise UserError(
            f"{name(sample)} and all of its {_ATTEMPTS - 1} replacements cannot be decoded: check the "
            "data set"
        )
