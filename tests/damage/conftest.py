"""Fixtures of the damage suite."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from damage.harness import Run
from damage.warm import Warm
from fastsimsiam.doctor.synthetic import textured_image


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process from which commands are forked; their index cache is `warm_cache`."""
    cache = tmp_path_factory.mktemp("warm-cache")
    server = Warm({"XDG_CACHE_HOME": str(cache)})
    yield server
    server.close()


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 validation images of two classes."""
    root = tmp_path_factory.mktemp("few")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                textured_image(rng, 40, 48).save(folder / f"{number:02d}.jpg")
    return root


@pytest.fixture(scope="session")
def whole(warm: Warm, few_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing interrupted."""
    run = Run(tmp_path_factory.mktemp("whole"), few_images)
    assert warm.run(run.command(), run.log, **run.options()) == 0, run.log.read_text()
    return run
