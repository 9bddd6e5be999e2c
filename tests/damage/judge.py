"""Shows every image of a data set to one loader, in a process of its own: a crash is then seen.

python judge.py LOADER DATA OUT: writes what the loader refuses, what it warns of and its pixels.
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.storage.open import open_split


def judge(name: str, data: Path, out: Path) -> None:
    """Writes OUT.json and OUT.npy."""
    storage = open_split(data, "train")
    options = LoaderOptions(device=torch.device("cpu"), workers=2, on_bad_image="skip")
    plan = center_plan(storage, 32, 1.0)
    with closing(build_loader(name, storage, options)) as loader:
        crops = torch.cat([batch.crops[0][:, 0] for batch in loader.iterate(plan)])
    np.save(out.with_suffix(".npy"), crops.numpy())
    verdict = {
        "refused": {Path(n).name: why for n, why in loader.bad_images.items()},
        "warned": {Path(n).name: why for n, why in loader.warned_images.items()},
        "names": [Path(path).name for path in storage.paths],
    }
    out.with_suffix(".json").write_text(json.dumps(verdict))


if __name__ == "__main__":
    judge(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
