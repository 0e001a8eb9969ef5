import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from mpelu.report.page import environment_rows, render_page, setting_rows
from mpelu.report.summary import summarize
from mpelu.report.verdict import Verdict

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
VERDICTS = (
    Verdict("MPELU learns where ReLU does not", "holds", "3.4 % against 89.9 %"),
    Verdict("Nothing diverges", "fails", "1 of 13 runs"),
    Verdict("Eq. 22 is better than LSUV", "inconclusive", "intervals overlap"),
)


class Outline(HTMLParser):
    """Collects tags, attributes and the text of each table's rows, and refuses tags that do not balance."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.tags = Counter()
        self.attributes = []
        self.rows = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row[0].strip() == first)

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def outline_of(page):
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert not outline.open
    return outline


def render(records, *, verdicts=VERDICTS):
    return render_page(
        records,
        title="Deep nets",
        lead="What trains.",
        how_to_read=["First the loss.", "Then the error."],
        verdicts=verdicts,
    )


def test_the_page_is_the_same_twice(study_records):
    assert render(study_records) == render(study_records)


def test_tags_balance_and_every_reference_resolves(study_records):
    outline = outline_of(render(study_records))
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    anchors = [value.removeprefix("#") for name in ("href", "xlink:href") for value in outline.values(name)]
    labelled = [
        one
        for name in ("aria-labelledby", "aria-describedby")
        for value in outline.values(name)
        for one in value.split()
    ]
    clips = re.findall(r"url\(#([^)]+)\)", " ".join(filter(None, outline.values("clip-path"))))
    assert anchors
    assert labelled
    assert clips
    assert set(anchors) | set(labelled) | set(clips) <= set(ids)


def test_nothing_is_loaded_and_nothing_runs(study_records):
    page = render(study_records)
    outline = outline_of(page)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(outline.tags)
    assert outline.values("src") == []
    assert all(value.startswith("#") for value in outline.values("href") + outline.values("xlink:href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]


def test_tables_have_captions_and_headers_say_their_scope(study_records):
    outline = outline_of(render(study_records))
    assert outline.tags["table"] == outline.tags["caption"]
    assert outline.tags["th"] == len([1 for tag, name, _ in outline.attributes if (tag, name) == ("th", "scope")])
    assert outline.tags["figure"] == outline.tags["figcaption"] == outline.tags["svg"] == 2


def test_the_results_are_those_of_the_records(make_record):
    records = [
        make_record("one", seed=0),
        make_record("two", seed=0),
        make_record("two", seed=1, errors=(50.0, 12.0, 14.0)),
    ]
    outline = outline_of(render(records))
    assert outline.row("one") == ["one", "12.00", "10.00", "1", "0.500", "0"]
    assert outline.row("two") == ["two", "12.00 (13.00 ± 1.41)", "10.00 (11.00 ± 1.41)", "2", "0.500", "0"]


def test_the_head_of_each_error_says_which_epoch(study_records):
    assert outline_of(render(study_records)).rows[0][1:3] == ["Test error, % last epoch", "Test error, % best epoch"]


def test_a_diverged_run_appears_with_reason_and_step(make_record):
    stopped = make_record("wild", errors=(), losses=(), diverged="loss is nan at step 12") | {"steps": 12}
    row = outline_of(render([make_record(), stopped])).row("wild")
    assert row[1:5] == ["—", "—", "0", "—"]
    assert row[5] == "1 of 1 seed 0 stopped after 12 steps: loss is nan at step 12"


def test_text_from_outside_is_escaped(make_record):
    attack = "<script>alert('x')</script>"
    record = make_record(attack, config={attack: attack})
    record["environment"]["device_name"] = attack
    page = render_page(
        [record], title=attack, lead=attack, how_to_read=[attack], verdicts=[Verdict(attack, "holds", attack)]
    )
    outline = outline_of(page)
    assert "<script" not in page
    assert outline.tags["script"] == 0
    assert "".join(outline.text).count(attack) > 10


def test_verdicts_say_their_outcome_in_words(study_records):
    text = "".join(outline_of(render(study_records)).text)
    assert re.search(r"Holds\s+MPELU learns where ReLU does not\s+3.4 % against 89.9 %", text)
    assert re.search(r"Does not hold\s+Nothing diverges\s+1 of 13 runs", text)
    assert re.search(r"Inconclusive\s+Eq. 22 is better than LSUV", text)


def test_a_page_without_verdicts_has_no_section_for_them(study_records):
    assert "verdicts" not in outline_of(render(study_records, verdicts=())).values("id")


@pytest.mark.parametrize("other", [{"data": "cifar10"}, {"scale": "gpu"}], ids=["data", "scale"])
def test_other_data_have_their_own_figures_and_a_column(make_record, other):
    outline = outline_of(render([make_record(), make_record("b", **other)]))
    assert outline.tags["svg"] == 4
    assert outline.rows[0][1] == "Data, scale"


def test_settings_that_differ_come_first(make_record):
    records = [make_record("a", config={"lr": 0.02, "alpha": 1.0}), make_record("b", config={"lr": 0.1})]
    settings = {setting.name: setting for setting in setting_rows(summarize(records))}
    assert settings["lr"].values == ("0.02", "0.1")
    assert settings["alpha"].values == ("1.0", "not set")
    assert [name for name, setting in settings.items() if setting.differs] == ["lr", "alpha"]
    names = [row[0] for row in outline_of(render(records)).rows]
    assert names.index("Where the recipes differ") < names.index("lr") < names.index("The same in every recipe")
    assert names.index("The same in every recipe") < names.index("model")


def test_environments_that_differ_are_counted(make_record):
    other = make_record(seed=1)
    other["environment"] = other["environment"] | {"threads": 2, "commit": "abc"}
    rows = dict(environment_rows([make_record(), other]))
    assert rows["threads"] == (("1", 1), ("2", 1))
    assert rows["commit"] == (("not recorded", 1), ("abc", 1))
    assert rows["python"] == (("3.11.7", 2),)
    assert "started_utc" not in rows


def test_every_run_is_listed_with_hash_and_state(study_records):
    outline = outline_of(render(study_records))
    listed = [row for row in outline.rows if len(row) == 8][1:]
    assert [(row[1], int(row[2])) for row in listed] == [(run["hash"], run["seed"]) for run in study_records]
    assert [row[7] for row in listed] == [run["state_sha256"] for run in study_records]
