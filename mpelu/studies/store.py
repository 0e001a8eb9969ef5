"""The records that a study keeps: one line each in a file, whichever of several processes finished the run."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock

from mpelu.errors import DataError, MpeluError
from mpelu.report.summary import Record
from mpelu.studies.findings import belongs
from mpelu.studies.jobs import key_of
from mpelu.train.records import RESULT, read_result, to_json

TRAININGS, MEASUREMENTS = "runs.jsonl", "measurements.jsonl"


class Store:
    """Records by key, in two files of a folder: trainings and measurements.

    Several processes may append at once; a record whose key is there is not appended again. A line that was cut off by
    a kill is dropped, and the runs of other studies are passed over.

    Args:
        folder: Of the files; made when the first record is appended.

    Raises:
        DataError: If a file holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: dict[str, Record] = {}
        self._read: dict[Path, int] = {}
        self._catch_up()

    @property
    def records(self) -> Mapping[str, Record]:
        """What was in the files when they were last looked at, and what was appended since."""
        return self._records

    def append(self, records: Iterable[Record]) -> int:
        """Append the records that are not there yet, and return how many they were.

        Raises:
            MpeluError: If the files cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.folder / ".lock"):
                self._catch_up()
                return sum(self._append(record) for record in records)
        except OSError as error:
            raise MpeluError(
                f"cannot append to the records in {self.folder} ({error.strerror}); give another folder with --results"
            ) from error

    def _append(self, record: Record) -> bool:
        key = key_of(record)
        if key in self._records:
            return False
        path = self.folder / (MEASUREMENTS if record.get("kind") == "measurement" else TRAININGS)
        line, end = to_json(dict(record)).encode() + b"\n", self._read.get(path, 0)
        with path.open("a+b") as file:
            file.truncate(end)  # what a kill cut off goes
            file.seek(max(0, end - 1))
            if file.read(1) not in (b"", b"\n"):
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._read[path] = end + len(line)
        self._records[key] = record
        return True

    def _catch_up(self) -> None:
        """Read the lines that were appended since the last time."""
        for path in (self.folder / TRAININGS, self.folder / MEASUREMENTS):
            if not path.exists():
                continue
            if path.stat().st_size < self._read.get(path, 0):  # it was replaced
                self._read[path] = 0
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            *lines, last = text.split(b"\n")
            lines += [last] if _is_json(last) else []
            for record in (_parsed(line, path) for line in lines if line):
                if belongs(record):
                    self._records[_key_in(path, record)] = record
            self._read[path] = self._read.get(path, 0) + len(text) - (0 if _is_json(last) else len(last))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parsed(line: bytes, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} is not a file of JSON lines ({error}); mend it, or give another folder") from error
    if not isinstance(record, dict) or record.get("schema") != 1:
        raise DataError(f"{path} holds a line that is not a record of schema 1; mend it, or give another folder")
    return record


def _key_in(path: Path, record: Record) -> str:
    try:
        return key_of(record)
    except (LookupError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} holds a record that is not whole ({told}); take the line out and run it again"
        ) from error


def finished_below(folder: Path) -> list[dict[str, Any]]:
    """Return the record of every finished run below a folder, which need not exist."""
    return [read_result(file.parent) for file in sorted(folder.rglob(RESULT))]
