"""The command line as `python -m fastsimsiam`."""

import sys

from fastsimsiam.cli import main

sys.exit(main())
