import shutil

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mpelu.data import find_photographs, load
from mpelu.errors import DataError, UsageError


def test_downloads_only_parquet_and_reads_it(parquet_folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abcd"
    shutil.copytree(parquet_folder, snapshot / "plain_text")
    asked = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    data = load("cifar10")
    assert asked == {"repository": "uoft-cs/cifar10", "repo_type": "dataset", "allow_patterns": "*.parquet"}
    assert data.name == "cifar10"
    assert len(data.train.labels) == 10


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_the_hub_names_the_local_folders(name, monkeypatch):
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DataError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message
    assert f"uoft-cs/{name}" in message
    assert "no connection" in message
    assert "--data PATH" in message
    assert "train-*.parquet" in message
    assert {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-python"}[name] in message


def test_offline_with_an_empty_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DataError, match="cannot get uoft-cs/cifar10 from the Hugging Face Hub"):
        load("cifar10")


def test_a_repository_without_training_files(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(DataError, match=r"has no train-\*\.parquet"):
        load("cifar10")


def test_photographs_of_the_hub_are_listed_not_read(parquet_folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abcd"
    shutil.copytree(parquet_folder, snapshot / "data")
    asked = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    data = find_photographs("imagenet")
    assert asked["repository"] == "ILSVRC/imagenet-1k"
    assert asked["allow_patterns"] == ["*train-*.parquet", "*validation-*.parquet"]
    assert (data.name, len(data.train.labels)) == ("imagenet", 10)
    with pytest.raises(UsageError, match="imagenet does not fit into memory; stream it"):
        load("imagenet")
    with pytest.raises(UsageError, match="digits is held in memory and is not streamed"):
        find_photographs("digits")
