"""Benchmarks of the loaders, the training step and whole runs.

Modules are named without their folder: benchmarks/regimes/loader.py is `benchmarks.loader`, run by
`python -m benchmarks.loader`. The folders sort the files for readers; they are no packages:

- regimes/: what is measured end to end (decode, loader, augment, step, train, forecast)
- parts/: single layers of the step, and the tools that the regimes measure with
- variants/: other ways to run the same training step
- figures/: tables, charts, and runs that end in a picture
- peers/: loaders of other projects, imported by their folder (`benchmarks.peers.official`)
- results/: the measured files, with the command, the machine and all samples
"""

from pathlib import Path

FOLDERS = ("regimes", "parts", "variants", "figures")
"""Folders whose modules are imported as `benchmarks.MODULE`."""

__path__ += [str(Path(__file__).parent / folder) for folder in FOLDERS]
