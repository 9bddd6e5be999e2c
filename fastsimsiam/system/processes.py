"""Work in processes that share no memory with this one: their results come through pipes.

Tensors of torch's DataLoader travel in shared memory, of which a container has 64 MB: where it is full
a worker dies by SIGBUS, or all of them wait. A pipe needs no memory of its own, and its other end is
closed when a process dies.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from fastsimsiam.errors import UserError

_Result = TypeVar("_Result")
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class InProcesses(Generic[_Result]):
    """The results of a function for a row of numbers, made in processes and delivered in order.

    Process p of n makes the results p, p + n, ...; each has one result ready and waits.
    """

    def __init__(
        self,
        make: Callable[[int], _Result],
        numbers: Sequence[int],
        processes: int,
        what: str,
        start_method: str | None = None,
    ) -> None:
        """Starts the processes.

        Args:
            make: the function; its results are pickled.
            numbers: what it is called with.
            processes: at most this many are started.
            what: what an error calls a process: `loader process`.
            start_method: of multiprocessing; None: its default.
        """
        self._numbers, self._what = numbers, what
        self._workers: list[tuple[BaseProcess, Connection]] = []
        count = min(processes, len(numbers))
        context: Any = multiprocessing.get_context(start_method)
        for first in range(count):
            reader, writer = multiprocessing.Pipe(duplex=False)
            # A process that held a reading end would not notice that this process has died.
            inherited = [reader, *(connection for _, connection in self._workers)]
            process = context.Process(
                target=_work,
                args=(make, numbers[first::count], writer, inherited),
                name=f"{what} {first}",
                daemon=True,
            )
            try:
                process.start()
            except OSError as error:
                reader.close()
                self.close()
                raise UserError(
                    f"cannot start a {what} ({error.strerror}): lower --workers"
                ) from error
            finally:
                writer.close()
            self._workers.append((process, reader))

    @property
    def processes(self) -> list[BaseProcess]:
        """The processes; none once they are closed."""
        return [process for process, _ in self._workers]

    def __iter__(self) -> Iterator[_Result]:
        """Yields the results.

        Raises:
            UserError: a process has died.
        """
        for turn in range(len(self._numbers)):
            process, reader = self._workers[turn % len(self._workers)]
            try:
                result: _Result = reader.recv()
            except (EOFError, OSError) as error:  # before a result, within one
                raise self._death(process) from error
            yield result

    def close(self) -> None:
        """Ends the processes."""
        for process, reader in self._workers:
            reader.close()
            process.kill()  # they ignore SIGTERM, and have nothing to save
        for process, _ in self._workers:
            process.join()
            process.close()
        self._workers = []

    def _death(self, process: BaseProcess) -> Exception:
        process.join()
        code = process.exitcode or 0
        if code >= 0:
            return RuntimeError(f"a {self._what} has ended with an error, printed above")
        name = signal.Signals(-code).name
        hint = "; the system's memory may be full: lower --workers" if name == "SIGKILL" else ""
        return UserError(f"a {self._what} has died (signal {-code}, {name}){hint}")


def _work(
    make: Callable[[int], object],
    numbers: Sequence[int],
    writer: Connection,
    inherited: Sequence[Connection],
) -> None:
    for reader in inherited:
        reader.close()
    torch.set_num_threads(1)  # the threads of the other process are not in this one
    # A signal to the group of processes is for the one that has started these.
    for name in _SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        for number in numbers:
            writer.send(make(number))
    except BrokenPipeError:  # nobody wants the results any more
        return
