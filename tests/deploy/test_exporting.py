import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mpelu.deploy import export, exporting, open_network
from mpelu.deploy.network import Network
from mpelu.errors import MpeluError, UsageError
from mpelu.nn import MPELU

PLACE = str(Path(torch.__file__).parent).encode()
"""Folder of this machine, which no exported file names."""
REASON = "export to ONNX needs the packages onnx, onnxscript and onnxruntime"


@pytest.fixture
def images():
    return torch.randn(5, 1, 14, 14, generator=torch.Generator().manual_seed(0))


def test_a_program_computes_the_same_for_any_batch(network, images, tmp_path):
    done = export(network, tmp_path / "net.pt2", format="program")
    assert done.bytes == (tmp_path / "net.pt2").stat().st_size
    assert done.largest_difference <= 1e-5
    notes = {"config.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=notes).module()
    for count in (1, 5):
        torch.testing.assert_close(program(images[:count]), network.net(images[:count]), rtol=1e-5, atol=1e-5)
    assert json.loads(notes["config.json"])["data"]["classes"] == list("0123456789")
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        assert all(PLACE not in archive.read(name) for name in archive.namelist())


def test_onnx_computes_the_same_for_any_batch(network, images, tmp_path):
    onnx = pytest.importorskip("onnx", reason=REASON)
    onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)
    pytest.importorskip("onnxscript", reason=REASON)
    done = export(network, tmp_path / "net.onnx", format="onnx")
    assert done.largest_difference <= 1e-5
    assert done.compared_with == f"onnxruntime {onnxruntime.__version__}"
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 14, 14]
    assert session.get_outputs()[0].name == "logits"
    for count in (1, 5):
        (found,) = session.run(None, {"images": images[:count].numpy()})
        wanted = network.net(images[:count]).detach()
        # exp - 1 in each of 9 activations, off by 2^-24 each
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)
    model = onnx.load(tmp_path / "net.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert PLACE not in (tmp_path / "net.onnx").read_bytes()
    notes = {each.key: each.value for each in model.metadata_props}
    assert json.loads(notes["mpelu"])["recipe_hash"] == network.description.recipe_hash


def test_a_smaller_net_computes_the_same():
    pytest.importorskip("onnx", reason=REASON)
    from mpelu.deploy.onnx import Whole, smaller

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.BatchNorm2d(4)
            self.falling = MPELU(4, 0.5)
            self.body = nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), MPELU(4, -0.5, 2.0), MPELU(1, 0.3)
            )
            self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), self.shared, self.falling, nn.Flatten())
            self.head = nn.Sequential(nn.Linear(64, 3), MPELU(3))

        def forward(self, x):
            return self.head(self.tail(self.shared(self.body(x))))

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.falling.beta.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        for _ in range(3):
            net(torch.randn(8, 2, 4, 4))  # running statistics
    state = {name: value.clone() for name, value in net.eval().state_dict().items()}
    x = 3 * torch.randn(3, 2, 4, 4)
    made = smaller(net, x)
    torch.testing.assert_close(made(x), net(x), rtol=1e-5, atol=1e-5)
    assert isinstance(made.body[1], nn.Identity)
    assert isinstance(made.body[2], Whole)
    assert isinstance(made.tail[1], nn.BatchNorm2d)  # used twice
    assert isinstance(made.falling, MPELU)  # with beta < 0, Elu would be something else
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())


def test_a_folder_is_read_back(network, tmp_path):
    done = export(network, tmp_path / "net", format="safetensors")
    assert done.largest_difference == 0
    assert torch.equal(
        open_network(str(tmp_path / "net")).net.state_dict()["conv1.weight"], network.net.state_dict()["conv1.weight"]
    )


def test_nothing_to_fold(trained, tmp_path):
    done = export(open_network(str(trained)), tmp_path / "net", format="safetensors", fold=True)
    assert done.fold.rows == ()
    assert done.fold_difference == 0


def test_what_computes_something_else_is_not_written(network, tmp_path):
    with pytest.raises(MpeluError, match=r"computes something else .* was not written"):
        exporting._checked(network, lambda x: network.net(x) + 1e-3, what="the file", path=tmp_path / "x")
    with pytest.raises(MpeluError, match=r"computes something else"):
        exporting._checked(network, lambda x: network.net(x) * float("nan"), what="the file", path=tmp_path / "x")
    with pytest.raises(MpeluError, match=r"returns shape \(1, 9\) for 1 images, wanted \(1, 10\)"):
        exporting._checked(network, lambda x: network.net(x)[:, 1:], what="the file", path=tmp_path / "x")


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] if x.sum() > 0 else -x.flatten(1)[:, :10]


@pytest.mark.parametrize("kind", ["program", "onnx"])
def test_a_network_that_cannot_be_traced(network, tmp_path, kind):
    if kind == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=REASON)
    with pytest.raises(MpeluError, match="does not take this network"):
        export(Network(Branching().eval(), network.description), tmp_path / "net", format=kind)
    assert not (tmp_path / "net").exists()


def test_packages_that_are_missing_are_named(network, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs onnx, onnxscript, onnxruntime, .* pip install 'mpelu\[onnx\]'"):
        export(network, tmp_path / "net.onnx", format="onnx")


def test_where_it_cannot_be_written(network, tmp_path):
    with pytest.raises(UsageError, match="is a folder, and program is one file"):
        export(network, tmp_path, format="program")
    with pytest.raises(MpeluError, match="no folder"):
        export(network, tmp_path / "none" / "net.pt2", format="program")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, and safetensors is a folder"):
        export(network, tmp_path / "file", format="safetensors")
    with pytest.raises(UsageError, match="--format must be safetensors, onnx, program, got 'zip'"):
        export(network, tmp_path / "net.zip", format="zip")


def test_an_old_file_survives_a_failure(network, tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"old")
    broken = Network(Branching().eval(), replace(network.description))
    with pytest.raises(MpeluError):
        export(broken, tmp_path / "net.pt2", format="program")
    assert (tmp_path / "net.pt2").read_bytes() == b"old"
