import json
import sys

import pytest

from mpelu.cli import main
from mpelu.errors import DataError
from mpelu.report.finding import Finding
from mpelu.report.grid import Grid, Picture
from mpelu.studies import catalog
from mpelu.studies.findings import belongs, keyed, reproduction, settings
from mpelu.studies.jobs import key_of
from mpelu.studies.study import Claim
from tests.made_up import measured, records, study


@pytest.fixture(scope="module")
def made_up():
    return records(150)


@pytest.fixture
def module(monkeypatch):
    made = study()
    monkeypatch.setitem(sys.modules, "mpelu.studies.made_up", made)
    monkeypatch.setattr(catalog, "STUDIES", ("made_up",))
    return made


@pytest.fixture(scope="module")
def found(made_up):
    """What the made-up study says about the made-up records and one of another study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mpelu.studies.made_up", study())
        patch.setattr(catalog, "STUDIES", ("made_up",))
        return reproduction([*made_up, made_up[0] | {"study": "demo"}])


@pytest.fixture
def file(tmp_path, made_up, module):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made_up[:20]))
    return path


def test_both_scales_are_asked_on_every_data_set_with_natural_images_first(made_up):
    other = made_up[0] | {"data": made_up[0]["data"] | {"name": "cifar10-jpeg75"}, "seed": 6}
    assert [(each.scale, each.data, each.seeds) for each in settings([*made_up, other])] == [
        ("paper", "cifar10-jpeg75", 7),
        ("paper", "digits", 7),
        ("cpu", "cifar10-jpeg75", 7),
        ("cpu", "digits", 7),
    ]


def test_without_records_every_claim_is_there_and_not_run(module):
    found = reproduction([])
    assert [claim.finding.claim for claim in found.claims] == list(range(1, 53))
    assert {claim.finding.outcome for claim in found.claims} == {"not run"}


def test_claims_rest_on_the_records_that_there_are(found, made_up):
    tested = [claim.finding for claim in found.claims if claim.finding.outcome != "not run"]
    assert tested
    assert all(set(finding.runs) <= set(found.records) for finding in tested)
    assert len(found.records) == len(made_up)


def test_a_verdict_says_how_many_runs_it_lacks(made_up, module):
    complete = reproduction(made_up, exhibits=False).claims
    tested = [number for number, claim in enumerate(complete) if claim.finding.outcome != "not run"]
    whole = [number for number in tested if "missing" not in complete[number].finding.evidence]
    assert whole, "a claim with all of its runs says nothing"
    gone = complete[whole[0]].finding.runs[0]
    rest = [record for record in made_up if key_of(record) != gone]
    found = reproduction(rest, exhibits=False).claims[whole[0]].finding
    assert found.outcome != "not run"
    assert found.evidence.endswith("1 of 20 runs of this claim are missing here, so that more may change the verdict.")


def test_tables_are_shown_at_the_settings_that_have_numbers(found):
    shown = {each.name: each for each in found.exhibits}
    assert [view.data for view in shown["table1"].views] == ["digits"]
    (untold,) = shown["table12"].views
    assert isinstance(untold, Grid)
    (picture,) = shown["figure1"].views
    assert isinstance(picture, Picture)


def test_records_of_other_studies_are_left_out_and_counted(found, made_up):
    assert found.left_out == 1
    assert not belongs({"study": "demo"})


def test_a_record_that_is_given_twice_is_taken_once(made_up):
    assert len(keyed([*made_up, *made_up])) == len(made_up)


@pytest.mark.parametrize("changes", [{"state_sha256": "0" * 64}, {"outcome": "diverged", "reason": "nan"}])
def test_two_runs_of_one_job_are_refused(made_up, changes):
    with pytest.raises(DataError, match=r"two records of 'plain15-relu-eq22' with seed 0 .* leave out"):
        keyed([made_up[0], made_up[0] | changes])


def test_two_measurements_of_one_job_are_refused():
    with pytest.raises(DataError, match=r"two records of 'mpelu\.studies\.made_up:forward' with seed 1"):
        keyed([measured(1), measured(1) | {"values": {"variance": [2.0]}}])


def test_a_record_that_lacks_something_is_refused(made_up):
    with pytest.raises(DataError, match="lacks history"):
        keyed([{name: value for name, value in made_up[0].items() if name != "history"}])


def test_an_error_in_a_study_says_which_claim_and_where(module):
    def judge(results):
        raise KeyError("layer")

    module.CLAIMS = (Claim(7, "statement", lambda setting: (), judge),)
    with pytest.raises(DataError, match=r"claim7 cannot be told .* at scale paper on digits \(KeyError: 'layer'\)"):
        reproduction([])


def test_the_command_reports_on_the_paper_when_runs_of_it_are_given(file, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["report", str(file), "--out", str(page), "--figures", str(tmp_path)]) == 0
    assert "Of 52 claims of the paper" in capsys.readouterr().out
    assert page.read_text().count('<li class="claim ') == 52
    assert (tmp_path / "figure1.svg").read_text().startswith("<svg ")


def test_the_command_says_what_it_left_out(file, made_up, capsys):
    with file.open("a") as lines:
        lines.write(json.dumps(made_up[0] | {"study": "demo"}))
    assert main(["report", str(file), "--only", "headline"]) == 0
    assert "records of other studies left out: 1" in capsys.readouterr().err


def test_the_command_prints_one_part_as_markdown(file, capsys):
    assert main(["report", str(file), "--only", "claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | the paper says | the runs say | evidence | setting |"
    assert len(lines) == 2 + 52


def test_one_study_alone_is_a_table_of_results(file, capsys):
    assert main(["report", str(file), "--study", "reproduce", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| recipe | data, scale |")


def test_one_study_has_no_parts(file, capsys):
    assert main(["report", str(file), "--study", "reproduce", "--only", "claims"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_measurements_alone_have_no_table_of_results(tmp_path, module, capsys):
    path = tmp_path / "measurements.jsonl"
    path.write_text(json.dumps(measured(0)))
    assert main(["report", str(path), "--study", "reproduce"]) == 1
    assert "only measurements" in capsys.readouterr().err


def test_records_are_printed_as_they_are(file, made_up, capsys):
    assert main(["report", str(file), "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == made_up[:20]


def test_what_is_computed_is_asked_once_and_what_has_data_at_every_setting(module, made_up):
    asked = []

    def claim(number, data):
        def judge(results):
            asked.append((number, results.setting.scale, results.setting.data))
            return Finding(number, "statement", "not run", "", (), "any", data(results))

        return Claim(number, "statement", lambda setting: (), judge)

    module.CLAIMS = (claim(1, lambda results: ""), claim(2, lambda results: results.setting.data))
    module.EXHIBITS = ()
    reproduction(made_up)
    assert asked == [(1, "paper", "digits"), (2, "paper", "digits"), (2, "cpu", "digits")]
