"""Short measurements of reading and decoding, without a loader and without a trainer.

All rates are images per second.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fastsimsiam.doctor.measure import Rate
from fastsimsiam.errors import BadImageError
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.resources import num_workers

_STORAGE_SECONDS = 5.0
_FILES = 4096


def measure_storage(storage: Storage, workers: int | None, seconds: float) -> tuple[Rate, float]:
    """Reads files after asking the page cache to drop them.

    Returns:
        The rate, and bytes per second.
    """
    # Synthetic photographs repeat: a file's second read would come from the cache.
    different = list(dict(zip(storage.paths, range(len(storage)), strict=True)).values())
    chosen = different[:: -(-len(different) // _FILES)]
    for path in {storage.file_of(number) for number in chosen}:
        _drop_from_cache(path)
    end = time.perf_counter() + min(seconds, _STORAGE_SECONDS)

    def read(number: int) -> int:
        # The loader reports broken images.
        with suppress(BadImageError):
            return len(storage.read(number)) if time.perf_counter() < end else 0
        return 0

    started = time.perf_counter()
    with ThreadPoolExecutor(num_workers(workers)) as pool:
        sizes = [size for size in pool.map(read, chosen, chunksize=4) if size]
    elapsed = time.perf_counter() - started
    return Rate(images_per_second=len(sizes) / elapsed), sum(sizes) / elapsed


def _drop_from_cache(path: Path) -> None:
    """Asks the system to drop a file from the page cache; unwritten pages are written first."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):  # some file systems do not support it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def measure_decode(storage: Storage, workers: int | None, seconds: float) -> Rate:
    """Decodes images on all threads and drops the pixels."""
    threads = num_workers(workers)
    end = time.perf_counter() + seconds

    def decode(first: int) -> int:
        done = 0
        while time.perf_counter() < end:
            with suppress(BadImageError):
                read_rgb(storage, (first + done * threads) % len(storage))
            done += 1
        return done

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        images = sum(pool.map(decode, range(threads)))
    return Rate(images_per_second=images / (time.perf_counter() - started))
