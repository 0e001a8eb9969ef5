import pytest
import torch
from torch import nn

from mpelu.bench import activation, compiled, model, tables, timing
from mpelu.cli import main
from mpelu.errors import DataError, UsageError


def row(name: str, metric: str, value: float, **changes) -> timing.Row:
    fields = {
        "benchmark": "activation", "subject": "8,4", "layout": "contiguous", "dtype": "float32", "machine": "m",
        "isa": "avx2", "threads": 1, "allocator": "steady", "torch": "t", "mpelu": "0", "python": "3", "date": "d",
    }  # fmt: skip
    return timing.Row(name=name, metric=metric, value=value, **{**fields, **changes})


def test_candidates_take_turns_in_both_orders():
    called = []

    def candidate(name):
        return lambda: called.append(name) or (1.0,)

    seconds = timing.take_turns({name: candidate(name) for name in "abc"}, rounds=2)
    assert "".join(called) == "abc" + "cba" + "abc" + "cba"
    assert seconds == {name: [(1.0,), (1.0,)] for name in "abc"}  # without the two rounds of warming up


def test_ratio_is_the_median_over_rounds():
    """One disturbed round does not count: 1/2, 1/2 and 100/2."""
    assert timing.ratio([(0.5, 0.5), (0.4, 0.6), (50.0, 50.0)], [(1.0, 1.0)] * 3) == 0.5


def test_rows_are_appended_and_read_back(tmp_path):
    path = tmp_path / "benchmarks.csv"
    rows = [row("elu", "forward ms", 1.25), row("elu", "backward ms", 123456.0)]
    timing.append(path, rows[:1])
    timing.append(path, rows[1:])
    assert timing.read(path) == [rows[0], row("elu", "backward ms", 123500.0)]  # four digits are kept
    path.write_text(path.read_text() + "half a row\n")
    with pytest.raises(DataError, match=r"benchmarks\.csv, line 4: wanted the columns"):
        timing.read(path)
    with pytest.raises(UsageError, match=r"no file .*nowhere\.csv"):
        timing.read(tmp_path / "nowhere.csv")


def test_table_shows_the_newest_value_of_each_setting():
    rows = [
        row("mpelu", "forward ms", 9.0),
        row("mpelu", "forward ms", 1.0),
        row("mpelu", "backward ms", 2.0),
        row("copy", "forward ms", 0.5e-4),
        row("elu", "mpelu / it", 0.5),
        row("elu", "mpelu / it", 0.25, isa="avx512"),
    ]
    assert tables.activation_table(rows) == (
        "| shape, layout, dtype | isa | fwd / bwd ms | GB/s | copy GB/s | / elu |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| 8,4 contiguous float32 | avx2 | 1.00 / 2.00 | 0.0 / 0.0 | 5.1 | 0.50 |\n"
        "| 8,4 contiguous float32 | avx512 | – / – | – / – | – | 0.25 |\n"
    )


def test_bandwidth_counts_what_has_to_be_read_and_written():
    rows = [row("mpelu", "forward ms", 1e-5), row("mpelu", "backward ms", 1e-5), row("copy", "forward ms", 1e-5)]
    # 32 elements of 4 bytes in 10 ns: 12.8 GB/s for each of them that is read or written
    assert "| 25.6 / 38.4 | 25.6 |" in tables.activation_table(rows)


def test_table_of_networks_has_a_dash_where_a_number_is_missing():
    """Rows of before there was a peak."""
    fields = {"benchmark": "model", "subject": "net, batch 4"}
    rows = [
        row("mpelu", "images/s", 40.0, **fields),
        row("mpelu", "kept MB", 3.0, **fields),
        row("relu", "images/s", 50.0, **fields),
        row("relu", "peak MB", 2.5, **fields),
    ]
    assert tables.model_table(rows).splitlines()[2:] == [
        "| net, batch 4 | mpelu | 40.0 | – | 3.0 | – |",
        "| net, batch 4 | relu | 50.0 | – | – | 2.5 |",
    ]


def test_compiled_bench_times_blocks_and_networks_against_elu_and_the_formula(monkeypatch):
    """What is timed, without the minutes that it takes to compile it."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setitem(compiled.NETWORKS, "nopre11", 2)
    parts = list(compiled.bench(shapes=["2,3,4,4"], dtypes=["float32", "bfloat16"], networks=["nopre11"], rounds=1))
    settings = [(part[0].subject, part[0].layout, part[0].dtype) for part in parts]
    assert len(set(settings)) == len(settings) == 2 * 2 * 2 + 2
    assert ("2,3,4,4, fixed affine", "channels_last", "bfloat16") in settings
    assert ("nopre11, batch 2", "contiguous", "float32") in settings
    for part in parts:
        assert {found.name for found in part} == {"mpelu", "elu", "naive"}
    table = tables.compiled_table([found for part in parts for found in part])
    assert table.count("\n") == 2 + len(settings)
    assert "–" not in table


@pytest.mark.parametrize("learned", [False, True])
def test_block_is_an_affine_map_mpelu_and_a_residual(learned):
    block = compiled.Block(activation.PROVIDERS["mpelu"](3, torch.float32), 3, learned=learned)
    x, residual = torch.randn(2, 2, 3, 4, 4)
    affine = x * torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1) + torch.tensor([-0.1, 0.0, 0.1]).view(3, 1, 1)
    negative = 0.25 * torch.expm1(affine.clamp(max=0))
    torch.testing.assert_close(block(x, residual), torch.where(affine > 0, affine, negative) + residual)
    assert {name for name, leaf in block.named_parameters() if leaf.requires_grad} >= {"activation.alpha"}
    assert block.scale.requires_grad is block.shift.requires_grad is learned


def test_activation_bench_gives_every_provider_three_numbers():
    (rows,) = activation.bench(shapes=["8,4"], dtypes=["float32"], rounds=1)
    assert {found.name for found in rows} == set(activation.PROVIDERS)
    assert {found.metric for found in rows} == {"forward ms", "backward ms", "mpelu / it"}
    (own,) = [found.value for found in rows if (found.name, found.metric) == ("mpelu", "mpelu / it")]
    assert own == 1.0
    assert all(found.value > 0 for found in rows)


@pytest.mark.parametrize("name", ["mpelu", "reference", "naive"])
def test_what_is_compared_computes_the_same(name):
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(
        activation.PROVIDERS[name](3, x.dtype)(x), torch.where(x > 0, x, 0.25 * torch.expm1(x.clamp(max=0)))
    )


def test_kept_bytes_counts_every_memory_once():
    convolution, x = nn.Conv2d(2, 2, 3, padding=1), torch.randn(1, 2, 8, 8)
    one_map = x.numel() * 4
    assert model.kept_bytes(convolution, x) == one_map
    assert model.kept_bytes(nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(2, 2, 1)), x) == 2 * one_map


def test_in_place_networks_are_the_same_function_and_keep_less():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    plain, inplace = (model.network("nopre11", name) for name in ("mpelu", "mpelu inplace"))
    inplace.load_state_dict(plain.state_dict())
    torch.testing.assert_close(inplace(images), plain(images))
    assert model.kept_bytes(inplace, images) < 0.9 * model.kept_bytes(plain, images)


class Spike(nn.Module):
    """Needs 40 MB for a moment, of which nothing is kept."""

    def forward(self, x):
        return x + torch.zeros(10_000_000).sum()


def test_peak_is_the_most_that_a_step_holds_at_a_time():
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    peaks = {}
    for name, middle in (("plain", nn.Identity()), ("spike", Spike())):
        net = nn.Sequential(nn.Conv2d(1, 50, 3, padding=1), middle, nn.Flatten(), nn.Linear(3200, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        peaks[name] = [model.peak_bytes(net, optimizer, images, labels) for _ in range(3)]
        assert len(set(peaks[name])) == 1
        assert min(peaks[name]) > model.kept_bytes(net, images)
    gradients_and_maps = 4 * (4 * 3200 * 3 + 3200 * 3 + 50 * 10)
    assert peaks["plain"][0] < gradients_and_maps
    assert 40e6 < peaks["spike"][0] < 40e6 + gradients_and_maps


def test_commands(capsys, tmp_path):
    path = tmp_path / "rows.csv"
    assert (
        main(["bench", "activation", "--only", "8,4", "--dtypes", "float32", "--rounds", "1", "--csv", str(path)]) == 0
    )
    printed = capsys.readouterr().out
    assert "8,4 contiguous float32" in printed
    assert main(["bench", "activation", "--table", str(path)]) == 0
    assert capsys.readouterr().out.count("\n") == printed.count("\n")
    assert main(["bench", "activation", "--only", "8x4"]) == 2
    assert main(["bench", "activation", "--dtypes", "float31"]) == 2
    assert main(["bench", "model", "--only", "nopre30"]) == 2
