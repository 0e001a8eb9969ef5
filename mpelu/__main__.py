"""Run the command line as ``python -m mpelu``."""

import sys

from mpelu.cli import main

sys.exit(main())
