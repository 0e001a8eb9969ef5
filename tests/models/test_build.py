import sys
import types

import pytest
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.models import build_model, family_of, source_sha256, takes_activation
from mpelu.nn import MPELU

CODE = """
from torch import nn

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))

def flexible(num_classes, in_channels, activation, width=4):
    return nn.Sequential(nn.Conv2d(in_channels, width, 1), activation(width), nn.Flatten(), nn.LazyLinear(num_classes))
"""
GIVEN = {"num_classes": 5, "in_channels": 3, "input_size": 2}


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own_net.py"
    file.write_text(CODE)
    return str(file)


def test_families(own):
    assert [family_of(name) for name in ("nopre164", "nin", f"{own}:fixed")] == ["nopre", "nin", "own"]
    assert [takes_activation(name) for name in ("nopre164", f"{own}:fixed", f"{own}:flexible")] == [True, False, True]


@pytest.mark.parametrize("name", ["plain9", "resnet8", "nin"])
def test_a_network_of_the_catalog_fits_the_images(name):
    net = build_model(name, num_classes=5, in_channels=2, input_size=12, activation="elu")
    assert net(torch.zeros(2, 2, 12, 12)).shape == (2, 5)
    assert any(isinstance(module, nn.ELU) for module in net.modules())


def test_a_function_is_given_what_it_has_parameters_for(own):
    assert build_model(f"{own}:fixed", **GIVEN)[1].out_features == 5
    net = build_model(f"{own}:flexible", **GIVEN, activation="mpelu", alpha=0.5, options={"width": 7})
    assert net(torch.zeros(1, 3, 2, 2)).shape == (1, 5)
    assert isinstance(net[1], MPELU)
    assert net[1].alpha.tolist() == [0.5] * 7


def test_an_option_that_a_function_does_not_take_is_refused(own):
    with pytest.raises(UsageError, match=r":flexible has no parameter depth; it has activation, in_channels, num_cl"):
        build_model(f"{own}:flexible", **GIVEN, options={"depth": 3})
    with pytest.raises(UsageError, match=r":fixed has no parameter width; it has none"):
        build_model(f"{own}:fixed", **GIVEN, options={"width": 3})


def test_the_digest_of_a_network_is_that_of_its_file(own, tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text(CODE)
    other = tmp_path / "other.py"
    other.write_text(CODE + "\n# wider\n")
    assert source_sha256(f"{own}:fixed") == source_sha256(f"{copy}:flexible") != source_sha256(f"{other}:fixed")


def test_names_of_timm_are_taken_where_it_is_installed(monkeypatch):
    seen = {}

    def create_model(name, **options):
        seen.update(options, name=name)
        return nn.Identity()

    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "resnet18d"
    timm.create_model = create_model
    timm.__spec__ = types.SimpleNamespace(name="timm")
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert family_of("resnet18d") == "timm"
    assert not takes_activation("resnet18d")
    build_model("resnet18d", **GIVEN, options={"drop_rate": 0.1})
    assert seen == {"name": "resnet18d", "num_classes": 5, "in_chans": 3, "drop_rate": 0.1}
    with pytest.raises(UsageError, match="unknown model 'resnet18e'"):
        family_of("resnet18e")


def test_what_the_data_and_the_recipe_decide_is_no_option():
    with pytest.raises(UsageError, match=r"alpha, in_channels of nopre11 follow from the data and the recipe"):
        build_model("nopre11", num_classes=10, in_channels=3, input_size=32, options={"in_channels": 1, "alpha": 1.0})
