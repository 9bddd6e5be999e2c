"""What happens when an image is broken: stop, or let another sample of the epoch stand in."""

from collections.abc import Callable
from typing import TypeVar

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage

MEND = "mend or remove it, or pass --on-bad-image skip"
_ATTEMPTS = 20
_Result = TypeVar("_Result")


class BadImagePolicy:
    """Runs a loader's work on one sample, and replaces the sample if its image is broken.

    Attributes:
        bad_images: name -> what is wrong with it, for what was skipped so far.
    """

    def __init__(self, on_bad_image: str) -> None:
        """Takes `on_bad_image`: `error` or `skip`."""
        assert on_bad_image in ("error", "skip")
        self.skip = on_bad_image == "skip"
        self.bad_images: dict[str, str] = {}

    def require_readable(self, storage: Storage) -> None:
        """Refuses files without a readable header at once, unless they are to be skipped.

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
        """Calls `work` with the sample at row `row` of `batch`, until its image is whole.

        A replacement overwrites the row's index, label and view parameters. It depends on the
        epoch and the sample alone, so a run repeats exactly.

        Args:
            plan: where replacements come from.
            batch: the batch, changed in place.
            row: the sample's row in it.
            work: decodes a sample, given by its index.
            name: what reports call a sample.

        Raises:
            BadImageError: the policy is `error`.
            UserError: twenty samples in a row are broken.
        """
        wanted = int(batch.index[row])
        for attempt in range(_ATTEMPTS):
            try:
                return work(int(batch.index[row]))
            except BadImageError as error:
                if not self.skip:
                    raise BadImageError(f"{error}: {MEND}") from error
                self.bad_images.setdefault(name(int(batch.index[row])), str(error))
                other = plan.replacement(batch.epoch, wanted, attempt)
                batch.index[row] = other.index[0]
                batch.label[row] = other.label[0]
                batch.views.overwrite_row(row, other.views)
        raise UserError(
            f"{_ATTEMPTS} images in a row cannot be decoded, {name(wanted)} and those drawn to replace "
            f"it: check the data set"
        )
