from pathlib import Path

import pytest
from torch import nn

from mpelu.errors import UsageError
from mpelu.models import load_factory

CODE = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Config:
    width: int = 3

def build():
    return nn.Linear(Config().width, 2)

def number():
    return 7

WIDTH = 3
"""


def test_a_factory_in_a_file(tmp_path):
    file = tmp_path / "net_in_a_file.py"
    file.write_text(CODE)
    model = load_factory(f"{file}:build")()
    assert isinstance(model, nn.Linear)
    assert model.in_features == 3


def test_a_factory_in_a_module_of_the_current_folder(tmp_path, monkeypatch):
    Path(tmp_path, "net_in_a_module.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", "/nowhere"])
    assert isinstance(load_factory("net_in_a_module:build")(), nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.py", "a function of your own is named module:name or file.py:name, got 'net.py'"),
        ("net.py:", "a function of your own is named module:name or file.py:name, got 'net.py:'"),
        ("nowhere.py:build", "there is no file nowhere.py"),
        ("no_such_module_here:build", "there is no module 'no_such_module_here'"),
        ("torch.no_such_part:build", "there is no module 'torch.no_such_part'"),
        ("{file}:missing", "has no function 'missing'; it has .*build, number"),
        ("{file}:WIDTH", "has no function 'WIDTH'"),
    ],
)
def test_a_wrong_name(tmp_path, name, message):
    file = tmp_path / "some_net.py"
    file.write_text(CODE)
    with pytest.raises(UsageError, match=message):
        load_factory(name.format(file=file))


def test_a_factory_that_returns_no_model(tmp_path):
    file = tmp_path / "other_net.py"
    file.write_text(CODE)
    with pytest.raises(UsageError, match=r"must return a torch.nn.Module, got int"):
        load_factory(f"{file}:number")()


def test_an_import_inside_the_module_that_fails_is_not_hidden(tmp_path):
    file = tmp_path / "broken_net.py"
    file.write_text("import no_such_module_inside\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_inside"):
        load_factory(f"{file}:build")
