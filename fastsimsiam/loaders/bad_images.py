"""Broken images: stop with an error, or replace the sample by another one of the epoch."""

from collections.abc import Callable
from typing import TypeVar

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage

FIX_BAD_IMAGE = "restore it, or pass --on-bad-image skip"
"""What the user can do about a broken image, for error messages."""
_ATTEMPTS = 20
_Result = TypeVar("_Result")


class BadImagePolicy:
    """Runs a loader's work on a sample, and replaces the sample if its image is broken.

    Attributes:
        skip: whether broken images are replaced.
        bad_images: image -> error, for the images that were skipped so far.
    """

    def __init__(self, on_bad_image: str) -> None:
        """Takes `on_bad_image`: `error` or `skip`."""
        assert on_bad_image in ("error", "skip")
        self.skip = on_bad_image == "skip"
        self.bad_images: dict[str, str] = {}

    def require_readable(self, storage: Storage) -> None:
        """Refuses files without a readable header, unless broken images are skipped.

        Raises:
            UserError: names the first such file.
        """
        if not self.skip:
            storage.require_readable()

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
                    raise BadImageError(f"{error}: {FIX_BAD_IMAGE}") from error
                self.bad_images.setdefault(name(int(batch.index[row])), str(error))
                other = plan.replacement(batch.epoch, sample, attempt)
                batch.index[row] = other.index[0]
                batch.label[row] = other.label[0]
                batch.views.overwrite_row(row, other.views)
        raise UserError(
            f"{name(sample)} and all of its {_ATTEMPTS - 1} replacements cannot be decoded: check the "
            "data set"
        )
