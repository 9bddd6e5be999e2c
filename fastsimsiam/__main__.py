"""`python -m fastsimsiam` is the command line."""

import sys

from fastsimsiam.cli import main

sys.exit(main())
