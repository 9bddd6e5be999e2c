"""Names that earlier versions had: for stored configs, and for a line that says today's."""

from collections.abc import Mapping

LOADERS: Mapping[str, str] = {"folder": "cpu"}
"""Loader -> its name of today."""
COMPILE: Mapping[str, str] = {"colour": "color"}
"""Value of `--compile` -> its name of today."""
VIEW_FIELDS: Mapping[str, str] = {"grey": "grayscale"}
"""Field of a `ViewSpec` -> its name of today."""
OPTIONS: Mapping[str, str] = {
    "--folder.decoder": "--loader (cpu or nvjpeg)",
    "--folder.crops": "--cpu.crops",
}
"""Option of the command line -> what stands for it today."""
