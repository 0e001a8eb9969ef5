"""Data sets from the Hugging Face Hub."""

from dataclasses import replace
from pathlib import Path

from mpelu.data import parquet
from mpelu.data.dataset import Source
from mpelu.data.photographs import PhotographSet, open_photographs
from mpelu.errors import DataError


def find(repository: str, *, name: str, instead: str) -> Source:
    """Download the Parquet files of a data set (once: the Hub's own cache keeps them) and recognize them.

    Args:
        repository: Owner and name on the Hub.
        name: What the data set is called here.
        instead: The local folders that can be given when the Hub is out of reach.

    Raises:
        DataError: If the files can neither be downloaded nor found in the Hub's cache, or have another layout.
    """
    source = parquet.find(_download(repository, "*.parquet", instead))
    if source is None:
        raise DataError(f"{repository} on the Hugging Face Hub has no train-*.parquet; give a local copy: {instead}")
    return replace(source, name=name)


def find_photographs(repository: str, *, name: str, instead: str) -> PhotographSet:
    """Download the Parquet files for training and validation, and list the images in them.

    Args:
        repository: Owner and name on the Hub.
        name: What the data set is called here.
        instead: The local folders that can be given when the Hub is out of reach.

    Raises:
        DataError: If the files can neither be downloaded nor found in the Hub's cache, or have another layout.
    """
    return open_photographs(_download(repository, ["*train-*.parquet", "*validation-*.parquet"], instead), name=name)


def _download(repository: str, patterns: str | list[str], instead: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The first base is the root of the HTTP client's errors; which client that is differs between versions.
    client_error: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
    except (OSError, RuntimeError, client_error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot get {repository} from the Hugging Face Hub ({reason}); "
            f"without the Hub, give a local copy with --data PATH: {instead}"
        ) from error
