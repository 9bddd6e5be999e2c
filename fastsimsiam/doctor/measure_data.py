"""Short measurements of reading and decoding, without a loader and without a trainer.

All rates are images per second.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from fastsimsiam.doctor.measure import Rate
from fastsimsiam.errors import BadImageError
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.plan.order import epoch_order, order_at
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.resources import num_workers

_STORAGE_SECONDS = 5.0
_FILES = 4096
_DRAWN = 1 << 16
_COPIED_BYTES = 1 << 28


def measure_storage(storage: Storage, workers: int | None, seconds: float) -> tuple[Rate, float]:
    """Reads images in random order, after asking the page cache to drop them.

    Returns:
        The rate, and bytes per second.
    """
    chosen = _some(storage)
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


def measure_one_file(storage: Storage, workers: int | None, seconds: float) -> float | None:
    """As `measure_storage`, from a copy of some images in one file without a name on the same disk.

    Returns:
        Images per second; None if the images lie in few files already, or no copy can be made.
    """
    if storage.is_packed:
        return None
    lengths: list[int] = []
    try:
        with tempfile.TemporaryFile(dir=storage.file_of(0).parent) as file:
            for number in _some(storage):
                with suppress(BadImageError):
                    lengths.append(file.write(storage.read(number)))
                if file.tell() > _COPIED_BYTES:
                    break
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            starts = np.cumsum([0, *lengths])[:-1]
            end = time.perf_counter() + min(seconds, _STORAGE_SECONDS)

            def read(number: int) -> int:
                if time.perf_counter() >= end:
                    return 0
                return len(os.pread(file.fileno(), lengths[number], int(starts[number])))

            started = time.perf_counter()
            with ThreadPoolExecutor(num_workers(workers)) as pool:
                done = sum(
                    1 for size in pool.map(read, epoch_order(len(lengths), 0, 0).tolist()) if size
                )
            return done / (time.perf_counter() - started)
    except (OSError, AttributeError):  # a disk that cannot be written, a system without this advice
        return None


def _some(storage: Storage) -> list[int]:
    """Numbers of different images, in random order."""
    order = order_at(np.arange(min(len(storage), _DRAWN)), len(storage), 0, 0).tolist()
    # Synthetic photographs repeat: a file's second read would come from the cache.
    different = {storage.paths[number]: number for number in order}
    return list(different.values())[:_FILES]


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
