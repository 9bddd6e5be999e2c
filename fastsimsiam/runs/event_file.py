"""TensorBoard's event file, written in the calling thread.

torch's SummaryWriter writes in a thread of its own, which prints a traceback where the disk is full.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsimsiam.errors import UserError


class EventFile:
    """An event file of scalars and texts."""

    def __init__(self, folder: Path) -> None:
        """Opens the file.

        Args:
            folder: receives the file; is created.

        Raises:
            UserError: TensorBoard is not installed, or does not load.
            OSError: the file cannot be written.
        """
        try:
            # Imported here: it takes a second, and only training needs it.
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        # Of a package that is missing, or does not fit those beside it.
        except (ImportError, AttributeError, TypeError) as error:
            raise UserError(f"it does not load ({error}); pip install tensorboard") from error
        self._protocol: Any = event_pb2
        self._summary: Any = summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / f"{name}.{time.perf_counter_ns()}"
        self._file = _WholeWrites(self._path)
        self._records = RecordWriter(self._file)

    def begin(self, first_step: int | None) -> None:
        """Writes the head of the file; raises OSError.

        Args:
            first_step: scalars of earlier files from this step on are hidden; None: none are.
        """
        self._add(file_version="brain.Event:2")
        if first_step is not None:
            start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
            self._add(step=first_step, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars; raises OSError."""
        together = self._summary.Summary()
        for name, value in values.items():
            together.MergeFrom(self._summary.scalar(name, value))
        self._add(step=step, summary=together)

    def text(self, step: int, name: str, text: str) -> None:
        """Adds a text; raises OSError."""
        self._add(step=step, summary=self._summary.text(name, text))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


class _WholeWrites:
    """An unbuffered file: what a call writes is in the file, or the call raises."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (see `close`)

    def write(self, data: bytes) -> None:
        if not os.fstat(self._file.fileno()).st_nlink:
            raise FileNotFoundError(None, "its file was removed")
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) or 0 :]

    def close(self) -> None:
        self._file.close()
