"""Everything worth measuring on a GPU that is at hand for minutes only.

    python -m benchmarks.gpu --minutes 9 --out RESULTS --data PHOTOS --imagenette IMAGENETTE

One process imports, tunes its convolutions and compiles once; its phases follow in order of value, each
with a time limit of its own. A phase's file `RESULTS/PHASE.json` is written as soon as the phase ends,
with a traceback if it failed, and RESULTS.tar.gz holds all of them. A phase that hangs or crashes is
killed, and the next one starts in a new process. The same command goes on with the phases that have no
file yet.

- `__main__.py`: the command: watches the process that measures, restarts it, packs the archive
- `worker.py`: that process: runs phases, each within its limit
- `phases.py`: the phases in their order
- `hardware.py`, `trainer.py`, `exactness.py`, `variants.py`, `programs.py`: what they measure
- `summary.py`: the table at the end
"""
