"""Time the training step of whole networks:

    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 python benchmarks/bench_model.py

It is ``mpelu bench model``; the options are the same.
"""

import sys

from mpelu.cli import main

sys.exit(main(["bench", "model", *sys.argv[1:]]))
