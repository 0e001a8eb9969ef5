"""A small net, trained once on the built-in digits, for all tests of this folder."""

import shutil
from dataclasses import replace

import pytest
from PIL import Image

from mpelu.data import load
from mpelu.deploy import open_network, save_pretrained
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare, run

RECIPE = Recipe(model="plain9", alpha=1.0, epochs=2, batch_size=64, limit=640, augment="crop14")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture(scope="session")
def trained(runs, digits):
    """Return the folder of a finished run."""
    prepared = prepare(RECIPE, seed=3, runs=runs, dataset=digits)
    run(prepared, device="cpu")
    return prepared.folder


@pytest.fixture(scope="session")
def tailored(runs, digits):
    """Return the folder of a run whose activations are wrapped."""
    recipe = replace(RECIPE, activation="elu", init="tailored", epochs=1, batch_norm=False)
    prepared = prepare(recipe, seed=0, runs=runs, dataset=digits)
    run(prepared, device="cpu")
    return prepared.folder


@pytest.fixture(scope="session")
def kept(trained, tmp_path_factory):
    """Return an exported folder that no test changes."""
    return save_pretrained(trained, tmp_path_factory.mktemp("kept") / "net")


@pytest.fixture
def exported(kept, tmp_path):
    """Return an exported folder of the test's own."""
    return shutil.copytree(kept, tmp_path / "net")


@pytest.fixture(scope="session")
def network(kept):
    return open_network(str(kept))


@pytest.fixture(scope="session")
def pictures(digits, tmp_path_factory):
    """Return a folder with the first ten test digits as PNG."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(10):
        Image.fromarray(digits.test.images[number, 0].numpy()).save(folder / f"{number}.png")
    return folder
