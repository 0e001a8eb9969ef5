"""Where numbers come from: runs that differ in their seed only, their settings, and what they ran on."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mpelu.report.summary import Record, finite, spread

SHOWN_LETTERS = 400
"""Of what a measurement returned; the whole stands in its record."""


@dataclass(frozen=True)
class Source:
    """Runs that differ in their seed only.

    Attributes:
        anchor: The id by which a page links to it.
        kind: What was done.
        name: Of the recipe, or of the measured function.
        label: The name, and where another source has it too the settings that tell the two apart.
        data: Name of the data set, empty where none is used.
        settings: Fields of the recipe, or options of the function.
        runs: The records, by seed.
        environments: Of each run, its place in the list of environments.
    """

    anchor: str
    kind: Literal["training", "measurement"]
    name: str
    label: str
    data: str
    settings: Mapping[str, str]
    runs: tuple[Record, ...]
    environments: tuple[int, ...]

    @property
    def diverged(self) -> int:
        return sum(run["outcome"] == "diverged" for run in self.runs)


@dataclass(frozen=True)
class Provenance:
    """All that the runs of a report have in common and where they differ.

    Attributes:
        sources: Trainings first, in the order of their first record.
        of: The source of each record, by the record's key.
        common: Settings that are the same in every training.
        environments: Each environment once, without the time of the start.
        data_sets: Each data set once.
    """

    sources: tuple[Source, ...]
    of: Mapping[str, Source]
    common: Mapping[str, str]
    environments: tuple[Mapping[str, str], ...]
    data_sets: tuple[Mapping[str, Any], ...]

    def behind(self, keys: Iterable[str]) -> tuple[Source, ...]:
        """Return the sources of these records, each once, in order; a key without a record has none."""
        return tuple({self.of[key].anchor: self.of[key] for key in keys if key in self.of}.values())


def is_measurement(record: Record) -> bool:
    """Return whether a record is of a measurement, not of a training."""
    return record.get("kind") == "measurement"


def trace(records: Mapping[str, Record]) -> Provenance:
    """Return where numbers come from, for records by key."""
    environments: dict[tuple[tuple[str, str], ...], int] = {}
    groups: dict[tuple[str, ...], dict[str, Record]] = {}
    for key, record in sorted(records.items(), key=lambda item: is_measurement(item[1])):
        groups.setdefault(_group(record), {})[key] = record
        environments.setdefault(tuple(_environment(record).items()), len(environments))
    anchors: Counter[str] = Counter()
    sources = _labelled([_source(tuple(runs.values()), environments, anchors) for runs in groups.values()])
    of = {key: source for source, runs in zip(sources, groups.values(), strict=True) for key in runs}
    trainings = [source.settings for source in sources if source.kind == "training"]
    return Provenance(
        sources=tuple(sources),
        of=of,
        common=_common(trainings),
        environments=tuple(dict(items) for items in environments),
        data_sets=_data_sets(list(records.values())),
    )


def own_settings(source: Source, common: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of a source that not every training has."""
    shared = common if source.kind == "training" else {}
    return {name: value for name, value in source.settings.items() if name not in shared}


def error_text(source: Source) -> str:
    """Write the test error in the last epoch over the runs that finished, and how many did not."""
    finished = [
        run["last"]["test_error_percent"] for run in source.runs if run["outcome"] == "finished" and run["last"]
    ]
    found = spread([value for value in map(finite, finished) if value is not None])
    parts = (
        [] if found is None else [f"{found.mean:.2f} %" if found.sd is None else f"{found.mean:.2f} ± {found.sd:.2f} %"]
    )
    if source.diverged:
        parts.append(f"{source.diverged} of {len(source.runs)} diverged")
    return ", ".join(parts)


def values_text(values: object) -> str:
    """Write what a measurement returned, cut where it is long.

    Example:
        >>> values_text({"seconds": 0.25})
        'seconds 0.25'
        >>> values_text([1, 2])
        '[1, 2]'
    """
    if isinstance(values, Mapping):
        text = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
    else:
        text = _short(values)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]} …"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_short(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} {_short(item)}" for name, item in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)


def _group(record: Record) -> tuple[str, ...]:
    data = record["data"] or {"name": "", "sha256": ""}
    if is_measurement(record):
        return ("measurement", record["function"], record["hash"], data["name"], data["sha256"])
    return ("training", record["recipe"], record["hash"], data["name"], data["sha256"])


def _source(
    unordered: Sequence[Record], environments: Mapping[tuple[tuple[str, str], ...], int], anchors: Counter[str]
) -> Source:
    runs = tuple(sorted(unordered, key=lambda run: run["seed"]))
    first = runs[0]
    measured = is_measurement(first)
    anchor = "run-" + re.sub(r"[^0-9A-Za-z]", "", str(first["hash"]))
    anchors[anchor] += 1
    return Source(
        anchor=anchor if anchors[anchor] == 1 else f"{anchor}-{anchors[anchor]}",
        kind="measurement" if measured else "training",
        name=first["function"] if measured else first["recipe"],
        label="",
        data=first["data"]["name"] if first["data"] else "",
        settings=_texts(first["options"] if measured else first["config"]),
        runs=runs,
        environments=tuple(environments[tuple(_environment(run).items())] for run in runs),
    )


def _labelled(sources: Sequence[Source]) -> list[Source]:
    """Name each source by what it has unlike most others of its name."""
    namesakes: dict[str, list[Source]] = {}
    for source in sources:
        namesakes.setdefault(source.name, []).append(source)
    usual = {name: _usual([source.settings for source in alike]) for name, alike in namesakes.items()}
    return [replace(source, label=_label(source, usual[source.name])) for source in sources]


def _usual(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(name for each in settings for name in each)
    return {name: Counter(each.get(name, "not set") for each in settings).most_common(1)[0][0] for name in names}


def _label(source: Source, usual: Mapping[str, str]) -> str:
    if source.kind == "measurement":
        unlike = list(source.settings.items())
    else:
        settings = [(name, source.settings.get(name, "not set")) for name in usual if name not in ("data", "model")]
        unlike = [(name, value) for name, value in settings if value != usual[name]]
    name = source.name.rpartition(":")[2].replace("_", " ") if source.kind == "measurement" else source.name
    return f"{name} ({', '.join(f'{name} {_rounded(value)}' for name, value in unlike)})" if unlike else name


def _rounded(text: str) -> str:
    """Return the text of a setting with three digits of each long number, and without quotes.

    Example:
        >>> _rounded('{"conv1.weight": 0.33333333333333331}'), _rounded("0.0075"), _rounded("raw")
        ('{conv1.weight: 0.333}', '0.0075', 'raw')
    """
    return re.sub(r"\d+\.\d{4,}", lambda found: f"{float(found[0]):.3g}", text.replace('"', ""))


def _environment(record: Record) -> dict[str, str]:
    return _texts({name: value for name, value in record["environment"].items() if name != "started_utc"})


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: "none" if value is None else value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def _common(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    if len(settings) < 2:
        return {}
    return {
        name: value for name, value in settings[0].items() if all(other.get(name) == value for other in settings[1:])
    }


def _data_sets(records: Sequence[Record]) -> tuple[Mapping[str, Any], ...]:
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in records:
        if data := record["data"]:
            place = (data["name"], data["sha256"])
            if len(data) > len(found.get(place, {})):  # measurements do not say how many images there are
                found[place] = data
    return tuple(found.values())
