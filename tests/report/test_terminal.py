import pytest
from rich.console import Console

from mpelu.report.summary import summarize
from mpelu.report.terminal import results_table


def printed(summaries, width=80):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(results_table(summaries))
    return capture.get()


def test_the_numbers_stand_under_last_and_best_epoch(make_record):
    text = printed(summarize([make_record(seed=0), make_record(seed=1, errors=(50.0, 12.0, 14.0))]))
    assert "digits, scale cpu" in text
    row = next(line for line in text.splitlines() if line.startswith("plain30-mpelu-eq22"))
    # last epoch 12 and 14, best epoch 10 and 12: the deviation of two numbers 2 apart is the root of 2
    assert " ".join(row.split()[1:]) == "2 12.00 (13.00 ± 1.41) 10.00 (11.00 ± 1.41) 0.500 0"
    assert text.index("last epoch") < text.index("best epoch")


@pytest.mark.parametrize("recipe", ["plain30-relu-gaussian", "cifar10_resnet164_nopre_mpelu_alpha025_cosine"])
def test_it_fits_into_80_columns_and_cuts_no_number(make_record, recipe):
    records = [make_record(recipe, seed=seed, errors=(90.0, 88.0 + seed, 99.0 - seed)) for seed in range(10)]
    records += [make_record(recipe, seed=0, data="cifar10", scale="gpu")]
    text = printed(summarize(records))
    assert max(map(len, text.splitlines())) <= 80
    assert "90.00 (94.50 ± 3.03) 88.00 (89.70 ± 0.67)" in text


def test_another_data_set_stands_under_its_own_heading(make_record):
    lines = printed(summarize([make_record("a"), make_record("b", scale="gpu"), make_record("c")])).splitlines()
    heads = [line.split()[0] for line in lines if line.strip()]
    assert [head for head in heads if head in {"a", "b", "c", "digits,"}] == ["digits,", "a", "c", "digits,", "b"]


def test_a_diverged_run_is_named_with_its_reason(make_record):
    text = printed(summarize([make_record("wild", errors=(), losses=(), diverged="loss is nan at step 12")]))
    assert "1 of 1" in text
    assert "wild, seed 0 stopped after 0 steps: loss is nan at step 12" in " ".join(text.split())


def test_a_name_is_not_read_as_markup(make_record):
    assert "[red]name[/red]" in printed(summarize([make_record("[red]name[/red]")]))
