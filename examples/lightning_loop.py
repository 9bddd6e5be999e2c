"""SimSiam in a Lightning loop, fed by the fast loaders.

    pip install lightning
    python examples/lightning_loop.py --data data/digits --epochs 2

`fastsimsiam.Loader` stands where a DataLoader stands. Its views lie on the device already, cut,
jittered and normalised; under DDP every rank gets its own share, without Lightning's sampler.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

import fastsimsiam
from fastsimsiam.build import build_method
from fastsimsiam.config import Config


class SimSiamModule(lightning.LightningModule):
    """Any module that takes a tuple of views will do; this one trains fastsimsiam's SimSiam."""

    def __init__(self, config: Config) -> None:
        """Makes the network that `config` describes."""
        super().__init__()
        self.config = config
        self.method = build_method(config)

    def training_step(self, batch: tuple[tuple[Tensor, ...], Tensor], _: int) -> Tensor:
        """The loss of a batch: its views, one tensor (B, 3, S, S) each, and labels (B,)."""
        views, _labels = batch
        loss, scores = self.method(views)
        self.log(
            "loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(views[0])
        )
        self.log_dict(scores, on_step=False, on_epoch=True, batch_size=len(views[0]))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """The paper's: lr times batch / 256, a cosine by epoch, the predictor's lr constant."""
        chosen, groups = self.config.optimizer, self.method.parameter_groups()
        optimizer = torch.optim.SGD(
            [{"params": group.parameters} for group in groups],
            lr=chosen.lr * self.config.batch_size / 256,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
        )

        def cosine(epoch: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * epoch / self.config.epochs))

        def constant(_: int) -> float:
            return 1.0

        factors = [constant if group.constant_lr else cosine for group in groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--recipe", default="demo", help="see `fastsimsiam recipes` (demo)")
    parser.add_argument("--epochs", type=int, default=2, help="(2)")
    args = parser.parse_args()
    config = fastsimsiam.recipe(args.recipe, epochs=args.epochs)
    trainer = lightning.Trainer(
        max_epochs=args.epochs, logger=False, enable_checkpointing=False, devices=1
    )
    with fastsimsiam.Loader(
        args.data,
        batch_size=config.batch_size,
        image_size=config.image_size,
        views=config.views,
    ) as loader:
        trainer.fit(SimSiamModule(config), loader)
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
