"""The commands, one file each: a dataclass of the arguments, and `run(argv)`.

Outside of `run` they import no torch and no NumPy, so help and errors appear at once.
"""
