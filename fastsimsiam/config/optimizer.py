"""The optimizer and the schedule of its learning rate."""

from dataclasses import dataclass
from typing import Literal

from fastsimsiam.config.fields import (
    MOST_EPOCHS,
    Switch,
    require,
    require_choices,
    require_used,
    require_within,
)

OptimizerName = Literal["sgd", "lars", "larc", "adamw"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and the schedule of its learning rate. Defaults are SimSiam's."""

    name: OptimizerName = "sgd"
    """sgd: with momentum. lars: SGD scaled per tensor by trust |w| / |g + decay w|, as in SimCLR, BYOL
    and MoCo v3. larc: by trust |w| / (|g| + decay |w|), as in SwAV. adamw: Adam, decoupled decay."""
    lr: float = 0.05
    """Learning rate at batch size 256."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """linear: lr times batch / 256. sqrt: times the root of batch / 256. none: lr at any batch size."""
    momentum: float = 0.9
    """Momentum; in adamw the decay of the mean gradient (beta 1)."""
    beta2: float = 0.999
    """Decay of the mean squared gradient (adamw)."""
    trust: float = 0.001
    """Coefficient of the ratio of norms (lars and larc)."""
    weight_decay: float = 1e-4
    """Weight decay; a method may exempt parameters, too."""
    exclude_bias_and_norm: Switch = False
    """on: biases and BatchNorm's parameters are not decayed, and lars and larc do not scale them."""
    schedule: Literal["epoch", "step"] = "epoch"
    """How often the cosine is evaluated: once an epoch or every step. Warm-up is by step."""
    decay: Literal["cosine", "milestones"] = "cosine"
    """cosine: half a cosine from the largest learning rate to the final one. milestones: a tenth of it
    from each of `milestones` on."""
    milestones: tuple[int, ...] = ()
    """Epochs, counted from 0, at whose start the learning rate is divided by 10 (milestones)."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up; published for SimSiam: 10 from batch 1024 up."""
    warmup_start_factor: float = 0.0
    """First learning rate of the warm-up, over the largest; with 0, the first of n steps has 1/n."""
    final_lr_factor: float = 0.0
    """Learning rate at the end of the cosine, over the largest."""

    def __post_init__(self) -> None:
        require_choices("optimizer.", self)
        # In float32, in which it is applied, a smaller one changes no weight.
        require_within("optimizer.lr", self.lr, 1e-12, 1e6)
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "give 0 to below 1")
        require(0 <= self.beta2 < 1, "optimizer.beta2", self.beta2, "give 0 to below 1")
        require_within("optimizer.trust", self.trust, 1e-9, 1e3)
        adaptive, adam = self.name in ("lars", "larc"), self.name == "adamw"
        fix = f"optimizer {self.name} does not use it: give lars or larc"
        require_used("optimizer.trust", self.trust, OptimizerConfig.trust, adaptive, fix)
        fix = f"optimizer {self.name} does not use it: give adamw"
        require_used("optimizer.beta2", self.beta2, OptimizerConfig.beta2, adam, fix)
        require_within("optimizer.weight_decay", self.weight_decay, 0, 1e6)
        require_within("optimizer.warmup_epochs", self.warmup_epochs, 0, MOST_EPOCHS)
        require_within("optimizer.warmup_start_factor", self.warmup_start_factor, 0, 1)
        require_within("optimizer.final_lr_factor", self.final_lr_factor, 0, 1)
        if self.decay == "milestones":
            require(
                bool(self.milestones), "optimizer.milestones", "empty", "give one epoch or more"
            )
            require(
                self.final_lr_factor == 0,
                "optimizer.final_lr_factor",
                self.final_lr_factor,
                "give 0: with milestones, the last one sets the final learning rate",
            )
        elif self.milestones:
            require(False, "optimizer.decay", self.decay, "give milestones, which you have listed")
        for epoch in self.milestones:
            require_within("optimizer.milestones", epoch, 1, MOST_EPOCHS)
        ascending = list(self.milestones) == sorted(set(self.milestones))
        require(ascending, "optimizer.milestones", self.milestones, "give ascending epochs")
        require(
            self.warmup_start_factor == 0 or self.warmup_epochs > 0,
            "optimizer.warmup_start_factor",
            self.warmup_start_factor,
            "give 0, or warmup_epochs above 0",
        )
