import math

import pytest
import torch

from mpelu.init import apply, plan
from mpelu.models import create_model
from mpelu.recipes.imagenet30 import FANS, connected_std, entering_std, narrow_std, released_std
from mpelu.studies import converging
from mpelu.studies.converging import Cell, converges_in_paper, largest_logit
from mpelu.studies.jobs import Setting, Training, key
from tests.studies.trained import DIGITS, GUESSING, diverged, finished, results

CLAIMS = {claim.number: claim for claim in converging.CLAIMS}
BY_JOB = {key(job): cell for cell in converging.CELLS for job in cell.trainings(DIGITS)}


def judged(number, make, setting=DIGITS):
    return CLAIMS[number].judge(results(CLAIMS[number].jobs(setting), make, setting))


def as_in_the_paper(job):
    return finished(job, 1.0) if converges_in_paper(BY_JOB[key(job)]) else diverged(job)


def test_claim_26_holds_if_every_activation_does_what_the_paper_says():
    finding = judged(26, as_in_the_paper)
    assert finding.outcome == "confirmed"
    assert [interval.estimate for interval in finding.intervals[:3]] == [1.0, 1.0, 1.0]
    assert "ReLU diverged/diverged/diverged, PReLU (0.25) diverged/learns/diverged" in finding.evidence


def test_claim_26_fails_if_relu_learns():
    finding = judged(26, lambda job: finished(job, 1.0))
    assert finding.outcome == "refuted"
    assert "ReLU learns/learns/learns" in finding.evidence


def test_claim_26_counts_a_flat_run_as_one_that_fails():
    def flat(job):
        return finished(job, 1.0 if converges_in_paper(BY_JOB[key(job)]) else GUESSING)

    assert judged(26, flat).outcome == "confirmed"


def test_claim_26_fails_if_prelu_converges_from_every_fan():
    """Three of nine runs are then as claimed, which alone would say nothing."""

    def prelu_learns(job):
        return finished(job, 1.0) if job.recipe.activation == "prelu" else as_in_the_paper(job)

    finding = judged(26, prelu_learns)
    assert finding.outcome == "refuted"
    assert [interval.estimate for interval in finding.intervals[:4]] == [1.0, pytest.approx(1 / 3), 1.0, 0.0]


def test_a_verdict_at_a_small_scale_claims_no_more():
    finding = judged(26, lambda job: finished(job, 1.0))
    assert finding.evidence.endswith("Refuted at scale cpu on digits; the paper's own setting was not run.")
    assert "learning rate" in finding.differs
    assert "handwritten digits" in finding.differs
    assert "own setting" not in judged(26, as_in_the_paper).evidence
    at_full_scale = judged(26, lambda job: finished(job, 1.0), Setting("paper"))
    assert at_full_scale.outcome == "refuted"
    assert "own setting" not in at_full_scale.evidence


def test_claim_26_rests_on_the_learning_rate_and_the_pixels_of_the_paper():
    def only_faster(job):
        return finished(job, 1.0) if job.recipe.lr == 0.01 else as_in_the_paper(job)

    finding = judged(26, only_faster)
    assert finding.outcome == "refuted"
    at_twice = next(interval for interval in finding.intervals if interval.quantity.endswith("claimed, lr x 2"))
    assert at_twice.estimate == 1.0


def test_claim_26_has_an_interval_for_every_cell():
    quantities = [interval.quantity for interval in judged(26, as_in_the_paper).intervals]
    assert len(set(quantities)) == len(quantities) == 4 + 4 + len(converging.CELLS)


@pytest.mark.parametrize("number", CLAIMS)
def test_what_is_missing_or_diverged_is_judged_too(number):
    assert judged(number, lambda _: None).outcome == "not run"
    assert judged(number, lambda _: None, Setting("paper")).outcome == "not run"
    assert judged(number, diverged).outcome == "refuted"
    assert judged(number, lambda job: as_in_the_paper(job) if job.recipe.activation == "relu" else None).outcome in (
        "not run",
        "inconclusive",
    )


def test_claim_28_holds_if_relu_overflows_where_mpelu_learns():
    finding = judged(28, lambda job: diverged(job) if job.recipe.activation == "relu" else finished(job, 1.0))
    assert finding.outcome == "confirmed"
    assert "1e+04 to 1e+04" in finding.evidence
    assert "ReLU 9 of 9, MPELU 0 of 9 at 2 times the paper's learning rate" in finding.evidence


def test_claim_28_fails_if_relu_diverges_with_small_logits():
    def small(job):
        return diverged(job, logit=10.0) if job.recipe.activation == "relu" else finished(job, 1.0)

    assert judged(28, small).outcome == "refuted"


def test_claim_28_fails_if_relu_never_diverges():
    assert judged(28, lambda job: finished(job, 1.0)).outcome == "refuted"


def test_claim_28_fails_if_mpelu_diverges_oftener_where_relu_does_not():
    """Where MPELU diverges apart from ReLU, the pairs in which ReLU does say nothing about it."""

    def crossed(job):
        cell = BY_JOB[key(job)]
        falls = cell.rate == 4.0 and (cell.activation == "mpelu" or (cell.fan == "fan_in" and job.seed == 0))
        return diverged(job) if falls and (cell.activation == "relu" or job.seed) else finished(job, 1.0)

    finding = judged(28, crossed)
    assert [interval.n for interval in finding.intervals[:3]] == [1, 1, 9]
    assert finding.intervals[2].estimate == pytest.approx(1 / 9 - 6 / 9)
    assert finding.outcome == "refuted"


def test_the_largest_logit_is_that_of_the_whole_run():
    job = Cell("relu", "fan_in").trainings(DIGITS)[0]
    assert largest_logit(finished(job, 1.0, logit=7.0)) == 7.0
    assert largest_logit(diverged(job, logit=300.0) | {"history": finished(job, 1.0)["history"]}) == 300.0
    old = diverged(job)
    del old["diverged_at"]
    assert largest_logit(old) is None


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_cells_are_different_trainings(scale):
    setting = Setting(scale, "digits")
    jobs = CLAIMS[26].jobs(setting)
    keys = {key(job) for job in jobs}
    assert len(keys) == len(jobs) == len(converging.CELLS) * converging.SEEDS
    assert {key(job) for job in CLAIMS[28].jobs(setting)} < keys


def test_equal_std_gives_relu_the_last_layers_of_the_others():
    relu = Cell("relu", "fan_out", variant="equal std")
    elu = Cell("elu", "fan_out")
    for setting in (DIGITS, Setting("paper")):
        stds = [cell.trainings(setting)[0].recipe.layer_std or {} for cell in (relu, elu)]
        assert [found["fc3.weight"] for found in stds] == [stds[1]["fc3.weight"]] * 2
    kept = Cell("prelu", "fan_out").trainings(Setting("paper"))[0].recipe.layer_std
    assert kept == released_std("prelu", fan="fan_out")


@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_narrow_layers_keep_the_gain_of_the_released_ones(activation):
    wide = connected_std(activation)
    narrow = narrow_std(activation, width=16)
    net = create_model("plain30", activation="relu", width=16)
    for name, fan_in in (("fc1.weight", 256 * 85), ("fc2.weight", 4096), ("fc3.weight", 4096)):
        ours = net.get_parameter(name).shape[1]
        assert narrow[name] * math.sqrt(ours) == pytest.approx(wide[name] * math.sqrt(fan_in))


@pytest.mark.parametrize("fan", FANS)
def test_the_image_enters_a_narrow_trunk_as_the_paper_s(fan):
    """The stds of the paper's convolutions against fan_in, multiplied, are that of the narrow net's first one."""
    with torch.device("meta"):
        net = create_model("imagenet30", activation="relu")
    example = torch.zeros(1, 3, 224, 224, device="meta")
    stds = {
        mode: [row.std for row in plan(net, example, method="msra", mode=mode, seed=0).weights[:27]]
        for mode in ("fan_in", fan)
    }
    ratio = math.prod(stds[fan]) / math.prod(stds["fan_in"])
    narrow = entering_std("relu", fan=fan, fan_in=9) / entering_std("relu", fan="fan_in", fan_in=9)
    assert narrow == pytest.approx(ratio)


def test_released_stds_are_those_of_parameters():
    net = create_model("plain30", activation="prelu", width=16)
    made = plan(net, torch.zeros(1, 1, 16, 16), method="eq22", seed=0)
    apply(made, net)
    names = {row.parameter for row in made.rows}
    assert {name for cell in converging.CELLS for name in cell.trainings(DIGITS)[0].recipe.layer_std or {}} <= names


def test_keys_do_not_depend_on_where_the_data_lie():
    here = Cell("elu", "average").trainings(Setting("cpu", "some/folder"))[0]
    named = Cell("elu", "average").trainings(Setting("cpu", "cifar10-jpeg75"))[0]
    assert isinstance(here, Training)
    assert key(here, "cifar10-jpeg75") == key(named)
