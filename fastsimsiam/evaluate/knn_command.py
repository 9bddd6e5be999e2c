"""kNN scores of a frozen backbone, beside those of the same network before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalOptions, Session, evaluating
from fastsimsiam.evaluate.features import extract
from fastsimsiam.evaluate.knn import knn_accuracy
from fastsimsiam.system.progress import ImageProgress


def knn(
    checkpoint: Path | str,
    data: Path | str,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.1,
    options: EvalOptions | None = None,
) -> dict[str, Any]:
    """KNN top-1 on a validation split, training split as the bank.

    Args:
        checkpoint: a file, or the folder of a run; see `frozen.load_frozen` for what is read.
        data: folder with train/ and val/.
        k: numbers of neighbours.
        temperature: neighbours are weighted by exp(cosine similarity / temperature).
        options: see there.

    Returns:
        `trained` and `untrained`, each k -> percent, and what they were measured on.

    Raises:
        UserError: something in the arguments or the data has to be mended.
    """
    if not k or min(k) < 1:
        raise UserError(f"--k is {tuple(k)}: give numbers from 1 up")
    if temperature <= 0:
        raise UserError(f"--temperature is {temperature}: give more than 0")
    with evaluating(checkpoint, data, options or EvalOptions()) as session:
        if max(k) > len(session.train):
            raise UserError(
                f"--k {max(k)} is more than the {len(session.train)} training images: lower it"
            )
        backbones = {"untrained": session.untrained(), "trained": session.frozen.backbone}
        scores: dict[str, Any] = {
            state: _scores(session, backbone, k, temperature)
            for state, backbone in backbones.items()
        }
        return scores | {
            "bad_images": session.bad_images,
            "checkpoint": str(checkpoint),
            "step": session.frozen.step,
            "data": str(data),
            "temperature": temperature,
            "bank": len(session.train),
            "queries": len(session.splits["val"]),
        }


def _scores(
    session: Session, backbone: nn.Module, k: Sequence[int], temperature: float
) -> dict[int, float]:
    sides = []
    for split in session.splits:
        with ImageProgress("features", unit="batches") as progress:
            sides.append(
                extract(
                    backbone, session.loader(split), session.centred(split),
                    device=session.device, dtype=session.dtype, report=progress,
                )
            )  # fmt: skip
    (bank, bank_label), (queries, query_label) = sides
    shares = knn_accuracy(
        bank, bank_label, queries, query_label, k=k, temperature=temperature,
        num_classes=len(session.train.classes),
    )  # fmt: skip
    return {count: 100.0 * share for count, share in shares.items()}
