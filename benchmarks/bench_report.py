"""Time and size of the report of a reproduction, for made-up records of 30 epochs each; the goals are 10 s and 3 MB.

python -m benchmarks.bench_report [RECORDS [PAGE.html]]
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mpelu.report.reproduction_page import render_reproduction
from mpelu.studies import catalog
from mpelu.studies.findings import reproduction
from tests.made_up import records, study


def main(arguments: Sequence[str]) -> None:
    made_up = records(int(arguments[0]) if arguments else 1000)
    sys.modules["mpelu.studies.made_up"] = study()
    catalog.STUDIES = ("made_up",)
    started = time.process_time()
    found = reproduction(made_up)
    judged = time.process_time()
    page = render_reproduction(found)
    ended = time.process_time()
    print(f"{len(made_up)} records: {judged - started:.1f} CPU s to judge, {ended - judged:.1f} CPU s for the page,")
    print(f"{len(page.encode()) / 1e6:.2f} MB")
    if len(arguments) > 1:
        Path(arguments[1]).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
