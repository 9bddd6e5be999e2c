"""fastsimsiam: the fastest exact trainer for SimSiam and its siblings."""

__version__ = "0.1.0"
