"""The record of a finished run: ``result.json``, written last. Reports read these and nothing else."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mpelu.errors import DataError, MpeluError

RESULT = "result.json"
METRICS = "metrics.csv"


def to_json(record: dict[str, Any], *, indent: int | None = None) -> str:
    """Return strict JSON; a value that is not finite becomes null, since JSON has no word for it."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_result(folder: Path) -> dict[str, Any]:
    """Read the record of one run folder.

    Raises:
        DataError: If the run has no record or the file is not one.
    """
    path = folder / RESULT
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{folder} holds no finished run ({RESULT} is missing); run the same command again") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); delete it and run the same command again") from error
    if not isinstance(record, dict) or record.get("schema") != 1:
        raise DataError(f"{path} is not a record of schema 1; delete it and run the same command again")
    return record


def find_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read every record below the given folders, and every line of the given .jsonl files, in order.

    Raises:
        MpeluError: If a path does not exist or holds no finished run.
        DataError: If a record cannot be read.
    """
    records = []
    for path in paths:
        if path.suffix == ".jsonl" and path.is_file():
            found = _read_lines(path)
        elif path.is_dir():
            found = [read_result(file.parent) for file in sorted(path.rglob(RESULT))]
        else:
            what = f"{path} is no folder" if path.exists() else f"no folder {path}"
            raise MpeluError(f"{what}; give the folder of one run or of many, or a .jsonl file of records")
        if not found:
            raise MpeluError(f"no finished run in {path}; 'mpelu train' or 'mpelu demo' makes one")
        records += found
    return records


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise DataError(f"{path} is not a file of JSON lines ({error}); write it with 'mpelu report --json'") from error
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise DataError(
                f"{path}, record {number}: wanted an object that 'mpelu report --json' writes, got {record!r:.40}"
            )
    return records


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Read the finished epochs of a run that may still be going on; no file is no epoch."""
    try:
        with (folder / METRICS).open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
