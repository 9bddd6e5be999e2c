"""The training loop. It knows neither methods nor loaders by name; build.py hands it both.

Between two log steps the host never waits for the device: the learning rate is a tensor, loss and
metrics are summed on the device, and so is the check that the loss is finite.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastsimsiam.config.run import Config
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.base import Batch, Loader
from fastsimsiam.methods.base import Method, Progress
from fastsimsiam.optim.base import Optimizer
from fastsimsiam.optim.schedule import ScheduleSteps, learning_rate, peak_lr
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.system.out_of_memory import memory_told
from fastsimsiam.system.progress import clock
from fastsimsiam.system.shared_cores import SharedCores
from fastsimsiam.train.distributed import World
from fastsimsiam.train.ending import how_to_go_on
from fastsimsiam.train.evaluator import Evaluator
from fastsimsiam.train.health import Health
from fastsimsiam.train.interrupt import Interrupt, Interrupted, catch_signals
from fastsimsiam.train.intervals import SaveClock, log_every
from fastsimsiam.train.step import optimizer_step
from fastsimsiam.train.window import Window


class NonFiniteLossError(UserError):
    """The loss became infinite or not a number."""


@dataclass(kw_only=True)
class Trainer:
    """Trains a method; built by `build.build_trainer`.

    Attributes:
        config: the run's configuration.
        method: the module that is trained.
        compute: (crops, photometric, labels) -> (loss, metrics); the compiled step, DDP around it.
        optimizer: updates the method's parameters.
        schedule_steps: durations of the run in optimizer steps.
        plan: the batches of this rank.
        loader: the source of their pixels.
        evaluators: called before the first step, every so often, and after the last.
        store: the run's checkpoints.
        data: fingerprint of the training images.
        recorder: receives metrics and messages.
        device: where the method is.
        world: this process among the others.
        step: optimizer steps done.
        after_step: called after each of them.
        seconds: duration of the run before this process resumed it.
        cores: tells when other programs slow the run down.
    """

    config: Config
    method: Method
    compute: Callable[..., tuple[Tensor, dict[str, Tensor]]] | nn.Module
    optimizer: Optimizer
    schedule_steps: ScheduleSteps
    plan: TrainPlan
    loader: Loader
    evaluators: Sequence[Evaluator]
    store: CheckpointStore
    data: str
    recorder: Recorder
    device: torch.device
    world: World
    step: int = 0
    after_step: Callable[[], None] = lambda: None
    seconds: float = 0.0
    cores: SharedCores = field(default_factory=SharedCores)
    _started: float | None = None
    _interrupt: Interrupt = field(default_factory=Interrupt)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint."""
        self.method.load_state_dict(checkpoint.method)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        torch.set_rng_state(checkpoint.rng["cpu"])
        if "cuda" in checkpoint.rng and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.rng["cuda"], self.device)
        self.step = checkpoint.step
        self.seconds = checkpoint.seconds

    def fit(self, interrupt: Interrupt | None = None) -> int:
        """Trains to the end of the run.

        Args:
            interrupt: keeps the signals of the process; None: they are caught here.

        Returns:
            0, or the number of the signal that ended it early; the state is saved either way.

        Raises:
            NonFiniteLossError: names the step, its learning rate and the last good checkpoint.
            UserError: an image is broken or the disk is full; the state is saved where possible.
        """
        self._started = time.perf_counter()
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._saved_step = self.step if self.step else -1
        self._clock = SaveClock(self.schedule_steps.checkpoint_every, self.config.checkpoint)
        self._health = Health(type(self.method), self.plan.batch_size)
        self._pace: float | None = None
        self.method.train()
        with nullcontext(interrupt) if interrupt else catch_signals() as self._interrupt:
            try:
                self._evaluate_if_due()
                self.recorder.start_bar(self.schedule_steps.stop, self.step)
                self._run()
            except Interrupted:
                self._save()
                number = self._interrupt.number
                self.recorder.say(how_to_go_on(self.step, signal.Signals(number)))
                return number
            except NonFiniteLossError:
                raise
            except (UserError, OSError) as error:
                # With several ranks the others are at another step and would wait for this one forever.
                if self.world.size == 1:
                    self._save()
                    if isinstance(error, BadImageError) and self.step:
                        raise BadImageError(
                            f"{error}; saved at step {self.step}: go on with --resume"
                        ) from error
                raise
            self._save()
        return 0

    def _run(self) -> None:
        """Trains; raises `Interrupted` between two steps, at the same one on all ranks."""
        steps, parts = self.schedule_steps, self.config.accumulate
        per_epoch, log_steps = steps.steps_per_epoch, log_every(self.config, self.device)
        while self.step < steps.stop:
            epoch, done = divmod(self.step, per_epoch)
            batches = self.loader.iterate(self.plan, epoch, done * parts)
            window = Window(device=self.device)
            for _ in range(done, min(per_epoch, steps.stop - epoch * per_epoch)):
                self._step(batches, window)
                self.after_step()
                at_end = self.step in (steps.stop, (epoch + 1) * per_epoch)
                logs = self.step % log_steps == 0 or at_end
                if logs:
                    self._log(window)
                    window = Window(device=self.device)
                if logs or self.world.size == 1 or self.device.type == "cpu":
                    self._leave_if_asked()
                if not at_end and self._is_save_due():
                    paused = time.perf_counter()
                    self._save()
                    window.started += time.perf_counter() - paused
            assert self.step < (epoch + 1) * per_epoch or next(batches, None) is None
            # Before the evaluation, which may take longer than a signal leaves time for.
            if self.step == steps.stop or self._is_save_due():
                self._save()
            self._evaluate_if_due()

    def _leave_if_asked(self) -> None:
        """Raises `Interrupted` if a rank has received a signal: all leave together.

        With several GPUs it waits for the device, so it is called where the log waits anyway.
        """
        number = self.world.maximum(self._interrupt.number, self.device)
        if number:
            self._interrupt.number = self._interrupt.number or number
            raise Interrupted

    def train_on(self, parts: Sequence[Batch], *, lr: float | None = None) -> dict[str, Tensor]:
        """One optimizer step that the run does not count; nothing here waits for the device.

        Args:
            parts: the batch, cut into parts whose gradients are accumulated.
            lr: learning rate of all parameters; None: the schedule's at this step.

        Returns:
            Loss and metrics, see `optimizer_step`.
        """
        return optimizer_step(
            self.compute,
            [(part.crops, part.photometric, part.label) for part in parts],
            method=self.method,
            optimizer=self.optimizer,
            at=Progress(
                step=self.step,
                steps_per_epoch=self.schedule_steps.steps_per_epoch,
                total_steps=self.schedule_steps.total,
            ),
            lr=self._lr(self.step) if lr is None else lr,
            peak_lr=peak_lr(self.config.optimizer, self.config.batch_size) if lr is None else lr,
        )

    def _step(self, batches: Iterator[Batch], window: Window) -> None:
        window.parts = ()  # its memory is used again
        window.parts = self._parts(batches, window)
        means = self.train_on(window.parts)
        failed = (self._first_bad_step < 0) & ~torch.isfinite(means["loss"])
        self._first_bad_step.masked_fill_(failed, self.step)
        window.add(means)
        self.step += 1

    def _parts(self, batches: Iterator[Batch], window: Window) -> list[Batch]:
        """All parts of a step before any is used: a broken image must not leave half a step."""
        started = time.perf_counter()
        # A rank that leaves here alone would leave the others in the middle of a step.
        alone = self.world.size == 1
        with self._interrupt.droppable() if alone else nullcontext():
            parts = [
                batch for _, batch in zip(range(self.config.accumulate), batches, strict=False)
            ]
        window.waited += time.perf_counter() - started
        assert len(parts) == self.config.accumulate, "the loader ended its epoch early"
        return parts

    def _lr(self, step: int) -> float:
        return learning_rate(
            self.config.optimizer,
            batch_size=self.config.batch_size,
            step=step,
            steps=self.schedule_steps,
        )

    def _log(self, window: Window) -> None:
        """The one place of the loop that waits for the device."""
        self._check_finite()
        means = window.means(self.world)
        seconds = time.perf_counter() - window.started
        images_on_this_device = window.steps * self.config.batch_size / self.world.size
        pace = seconds / window.steps
        self._pace = pace if self._pace is None else 0.9 * self._pace + 0.1 * pace
        values = {
            "epoch": self.step / self.schedule_steps.steps_per_epoch,
            **means,
            "lr": self._lr(self.step - 1),
            "images_per_second": images_on_this_device / seconds,
            "data_wait": window.waited / seconds,
        }
        self.recorder.record(self.step, values)
        metrics = "".join(f"{name} {value:.4f}  " for name, value in means.items())
        remaining = (self.schedule_steps.stop - self.step) * self._pace
        self.recorder.status(
            f"epoch {values['epoch']:.2f}  {metrics}lr {values['lr']:.4g}  "
            f"{values['images_per_second']:.0f} images/s  data-wait {values['data_wait']:.0%}  "
            f"ETA {clock(remaining)}",
            self.step,
            self.schedule_steps.stop,
        )
        if shared := self.cores.news():
            self.recorder.say(f"step {self.step}: {shared}")
        last = self.step == self.schedule_steps.stop
        for warning in self._health.warnings(self.step, means, window.parts, last=last):
            self.recorder.say(f"WARNING: step {self.step}: {warning}")

    def _check_finite(self) -> None:
        bad = self.world.maximum(int(self._first_bad_step.item()), self.device)
        if bad >= 0:
            raise self._not_finite(f"the loss is not finite at step {bad}", bad)

    def _check_weights(self) -> None:
        """A finite loss may have had gradients that are not; such weights are never saved."""
        norm = torch.nn.utils.get_total_norm([p.detach() for p in self.method.parameters()])
        if not torch.isfinite(norm):
            raise self._not_finite(f"the weights are not finite at step {self.step}", self.step)

    def _not_finite(self, what: str, step: int) -> NonFiniteLossError:
        saved = self.store.newest_path()
        newest = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
        other = "" if self.config.precision == "fp32" else ", or with --precision fp32"
        return NonFiniteLossError(
            f"{what} (lr {self._lr(step):.4g}); {newest}: "
            f"start again with another --out and a lower --optimizer.lr{other}"
        )

    def _evaluate_if_due(self) -> None:
        """Scores the method on the main rank, while the others wait.

        A run that was stopped before or in an evaluation makes up for it when it is resumed. Raises
        `Interrupted` if a signal ends the evaluation.
        """
        steps = self.schedule_steps
        at_step = steps.knn_every and (self.step % steps.knn_every == 0 or self.step == steps.stop)
        if self.step and not at_step:
            return
        if self.evaluators and self.world.is_main and not self._is_scored():
            with suppress(Interrupted):  # the other ranks hear of the signal below
                self._evaluate()
        self.world.wait()
        self._leave_if_asked()

    def _is_scored(self) -> bool:
        """Whether the history has scores of this step; lines of training have an epoch."""
        return any(
            line["step"] == self.step and "epoch" not in line for line in self.recorder.history
        )

    def _evaluate(self) -> None:
        self.recorder.status("evaluating")
        started = time.perf_counter()
        fix = "pass --knn.every-epochs 0, and score a checkpoint with `fastsimsiam knn`"
        with self._interrupt.droppable(), memory_told("the evaluation", fix):
            scores = {
                name: value for evaluate in self.evaluators for name, value in evaluate(self.method)
            }
        when = f"epoch {self.step / self.schedule_steps.steps_per_epoch:g}"
        text = "  ".join(f"{name} {value:.2f}" for name, value in scores.items()) or "no score"
        took = clock(time.perf_counter() - started)
        self.recorder.record(self.step, scores)
        self.recorder.say(f"{when if self.step else 'untrained'}: {text}  ({took})")

    def elapsed(self) -> float:
        """Duration of the run so far in seconds, the time before a resume included."""
        here = 0.0 if self._started is None else time.perf_counter() - self._started
        return self.seconds + here

    def _is_save_due(self) -> bool:
        return self._clock.is_due(self.step, self.world, self.device)

    def _save(self) -> None:
        if self.step in (0, self._saved_step):
            return
        self._check_finite()
        self._check_weights()
        if self.world.is_main:
            rng = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                rng["cuda"] = torch.cuda.get_rng_state(self.device)
            self.store.save(
                Checkpoint(
                    config=self.config,
                    step=self.step,
                    data=self.data,
                    method=self.method.state_dict(),
                    optimizer=self.optimizer.state_dict(),
                    rng=rng,
                    seconds=self.elapsed(),
                    ranks=self.world.size,
                )
            )
        self._saved_step = self.step
        self._clock.restart()
        self.world.wait()
