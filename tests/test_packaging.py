"""What is given out holds what it should, and versions are the same wherever they are written."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import mpelu
from mpelu.cli import main

ROOT = Path(__file__).parents[1]
LOCKS = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.lock")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text):
    """Return the version of each package of a file of requirements."""
    found = re.findall(r"^([\w.-]+)==([^\s;+]+)", text, re.MULTILINE)
    assert len({canonical(name) for name, _ in found}) == len(found)
    return {canonical(name): version for name, version in found}


PINNED = pins((ROOT / "constraints.txt").read_text())


def names(requirements):
    return {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def test_everything_that_the_project_asks_for_has_an_exact_version():
    optional = PROJECT["optional-dependencies"].values()
    assert names([*PROJECT["dependencies"], *(each for extra in optional for each in extra)]) <= PINNED.keys()


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_have_the_versions_of_the_constraints(name):
    assert pins(LOCKS[name]).items() <= PINNED.items()


def test_lock_files_hold_every_dependency_once():
    common, cpu, cuda = (pins(LOCKS[name]).keys() for name in ("common", "cpu", "cuda"))
    assert not common & (cpu | cuda)
    assert names(PROJECT["dependencies"]) <= common | cpu
    assert cpu <= cuda
    assert all("\n-r common.lock\n" in LOCKS[name] for name in ("cpu", "cuda"))


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_version_has_hashes(name):
    for requirement in re.split(r"\n(?! )", re.sub(r"^#.*\n|^-r .*\n", "", LOCKS[name], flags=re.MULTILINE).strip()):
        first, *hashes = requirement.split(" \\\n")
        assert "==" in first
        assert hashes, first
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", each) for each in hashes), first


def test_version_is_that_of_the_newest_entry_in_the_changelog(capsys):
    newest = re.search(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"mpelu {newest[1]}\n"


@pytest.fixture(scope="module")
def archived(tmp_path_factory):
    """Return the names in the source archive, which is made here."""
    folder = tmp_path_factory.mktemp("dist")
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.iterdir()
    assert archive.name == f"mpelu-{mpelu.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def test_source_archive_builds_and_holds_no_leftovers(archived):
    assert {"PKG-INFO", "pyproject.toml", "CMakeLists.txt", "LICENSE", "mpelu/ops/csrc/module.cpp"} <= archived
    assert {"mpelu/data/files/ATTRIBUTION.md", "tests/conftest.py", "docs/kernels.md", "constraints.txt"} <= archived
    assert not [
        name for name in archived if re.search(r"__pycache__|\.(pyc|so|whl|ckpt)$|^(dist|build|runs|\.venv)/", name)
    ]


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no checkout")
def test_source_archive_holds_the_repository(archived):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {name for name in listed.split("\0") if (ROOT / name).is_file()}
    assert tracked
    assert not tracked - archived
