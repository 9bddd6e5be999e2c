"""The damage suite: what kills a run, fills its disk or spoils its files, and what must hold then.

A short form runs with all tests; `make damage` runs the long one, where FASTSIMSIAM_DAMAGE is `long`.
"""
