"""SimSiam in a Lightning loop, fed by the fast loaders.

    pip install lightning
    python examples/lightning_loop.py --data data/digits --epochs 2

`fastsimsiam.Loader` takes the place of a DataLoader. Its views are on the device already: cropped,
jittered and normalized. It is opened in `train_dataloader`, after Lightning has started
torch.distributed, and gives every rank its share of each batch without Lightning's sampler.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

import fastsimsiam


class SimSiamModule(lightning.LightningModule):
    """Trains a method without hooks and with default parameter groups, as SimSiam is."""

    def __init__(self, config: fastsimsiam.Config) -> None:
        """Builds the network of a config, with fresh weights."""
        super().__init__()
        self.config = config
        self.method = fastsimsiam.build_method(config)

    def train_dataloader(self) -> fastsimsiam.Loader:
        """Opens the fast loader; its batch size is that of all ranks together."""
        self.loader = fastsimsiam.Loader(
            self.config.data,
            batch_size=self.config.batch_size,
            image_size=self.config.image_size,
            views=self.config.views,
            device=self.config.device,
        )
        return self.loader

    def teardown(self, stage: str) -> None:
        """Stops the loader's threads."""
        self.loader.close()

    def training_step(self, batch: tuple[tuple[Tensor, ...], Tensor], _: int) -> Tensor:
        """Returns the loss of a batch: views, a tensor (B, 3, S, S) each, and labels (B,)."""
        views, labels = batch
        loss, metrics = self.method(views, labels)
        self.log_dict(
            {"loss": loss, **metrics},
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            batch_size=len(views[0]),
            sync_dist=True,
        )
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """The paper's SGD: lr * batch / 256, a cosine by epoch, a constant lr for the predictor."""
        options, groups = self.config.optimizer, self.method.parameter_groups()
        optimizer = torch.optim.SGD(
            [{"params": group.parameters} for group in groups],
            lr=options.lr * self.config.batch_size / 256,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
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
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or processes on a CPU (1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(auto)")
    args = parser.parse_args()
    config = fastsimsiam.recipe(args.recipe, data=args.data, epochs=args.epochs, device=args.device)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        logger=False,
        enable_checkpointing=False,
        devices=args.devices,
        accelerator=args.device,
    )
    trainer.fit(SimSiamModule(config))
    if trainer.is_global_zero:
        print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
