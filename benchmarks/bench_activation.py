"""Time activations. The allocator is set so that the kernel's time is seen and not that of page faults:

    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 python benchmarks/bench_activation.py

It is ``mpelu bench activation``; the options are the same.
"""

import sys

from mpelu.cli import main

sys.exit(main(["bench", "activation", *sys.argv[1:]]))
