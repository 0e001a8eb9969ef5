import pytest

from mpelu.report.curves import PANELS, panels


def run(losses, *, outcome="finished", classes=10):
    rows = [
        {"epoch": epoch, "train_loss": loss, "train_error_percent": 30.0 * loss, "test_error_percent": 35.0 * loss}
        for epoch, loss in enumerate(losses, start=1)
    ]
    return {"outcome": outcome, "data": {"classes": classes}, "history": rows}


def test_every_panel_and_every_net_with_runs_is_drawn():
    svg = panels({"deep": [run([2.0, 1.0]), run([2.1, 1.2])], "wide": [run([1.5, 0.5])], "none": []}, name="figure3")
    assert svg.count("<svg") == 1
    for text in (*PANELS.values(), "deep", "wide"):
        assert f">{text}<" in svg
    assert ">none<" not in svg
    assert "by epoch; dotted lines: guessing. Nets: deep; wide." in svg


def test_one_panel_can_be_drawn_alone():
    svg = panels({"deep": [run([2.0, 1.0])]}, name="figure2", keys=["train_loss"])
    assert ">training loss<" in svg
    assert "test error" not in svg


@pytest.mark.parametrize("losses", [[2.0, None], [2.0, 1e9], []], ids=["null", "huge", "before its first epoch"])
def test_runs_that_diverged_do_not_change_the_scale(losses):
    rows = [run([2.0, 1.0]), run([], outcome="diverged")]
    rows[1]["history"] = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses, start=1)]
    svg = panels({"deep": rows}, name="figure3")
    assert svg == panels({"deep": rows}, name="figure3")
    assert "1000000000" not in svg


def test_nothing_run_is_an_empty_drawing():
    assert "none was trained yet" in panels({"deep": []}, name="figure3")
