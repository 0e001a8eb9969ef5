"""Folders of a network: ``model.safetensors``, ``config.json`` and a card. Written whole, checked when read.

Reading runs no code: weights are safetensors, everything else is JSON.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mpelu.data import Dataset
from mpelu.deploy.card import MARK, card
from mpelu.deploy.config import dumped, from_config, mean_image, to_config
from mpelu.deploy.network import Description, Network, built, folded, of_run, without_images, without_places
from mpelu.errors import DataError, MpeluError, UsageError
from mpelu.models import OWN, family_of, source_sha256, takes_activation
from mpelu.train.checkpoint import write_atomically
from mpelu.train.network import AS_BUILT, hash_of
from mpelu.train.recipe import Recipe, resolve

CONFIG, WEIGHTS, MEAN, CARD = "config.json", "model.safetensors", "mean.safetensors", "README.md"
PATTERNS = [CONFIG, WEIGHTS, MEAN, CARD]
"""What is fetched from the Hub; whatever else lies there is left there."""


def save_pretrained(
    source: nn.Module | str | Path,
    folder: str | Path,
    *,
    weights: str = "last",
    fold: bool = False,
    recipe: Recipe | None = None,
    data: Dataset | None = None,
) -> Path:
    """Write a network to a folder: ``model.safetensors``, ``config.json`` and a model card, ``README.md``.

    Each file is written whole or not at all, the config last: a folder that was written in part is refused when it is
    read. A ``README.md`` of your own stays.

    Args:
        source: The folder of a run; a network that :func:`from_pretrained` returned; or any other network together
            with ``recipe`` and ``data``.
        folder: Where to write; created if need be.
        weights: Of a run, ``last`` or ``best`` epoch.
        fold: Absorb the wrappers of tailored activations first; see :func:`mpelu.fold`.
        recipe: Of a network of your own making: how it is built (``model``, ``activation``, ``alpha`` ...).
        data: What that one was trained on: its classes, image shape, mean and standard deviation are stored.

    Returns:
        The folder.

    Raises:
        UsageError: If it is not said how the network is built, or it is not built so.
        DataError: If the run cannot be read.
        MpeluError: If the folder cannot be written.
    """
    network = described(source, weights=weights, recipe=recipe, data=data)
    if fold:
        network, _ = folded(network)
    return write(network, Path(folder))


def from_pretrained(
    source: str | Path, *, revision: str | None = None, model: str | None = None, token: str | None = None
) -> nn.Module:
    """Load a network from a folder, or from the Hugging Face Hub.

    Args:
        source: A folder that :func:`save_pretrained` wrote, or ``owner/name`` on the Hub. A folder comes first.
        revision: Of the Hub: a branch, a tag or a commit.
        model: Of a network that is a function of its author's: where that function is, as ``file.py:function``. Its
            code is run; nothing else is.
        token: Of the Hub, for what is not public.

    Returns:
        The network in evaluation mode, on the CPU. Its attribute ``description`` is a
        :class:`mpelu.deploy.Description`: classes, recipe, normalization, result.

    Raises:
        UsageError: If the network needs ``model``, or cannot be built.
        DataError: If a file is missing, damaged, or does not belong to the others.
    """
    return load(source, revision=revision, model=model, token=token).net


def push_to_hub(
    source: nn.Module | str | Path,
    repository: str,
    *,
    weights: str = "last",
    private: bool = False,
    token: str | None = None,
    message: str = "Add a network trained with mpelu",
) -> str:
    """Upload a network to the Hugging Face Hub, as :func:`save_pretrained` writes it.

    Args:
        source: As for :func:`save_pretrained`; a folder that it wrote is uploaded as it is.
        repository: ``owner/name``; created if need be.
        weights: Of a run, ``last`` or ``best`` epoch.
        private: Of a repository that is created.
        token: Of the Hub; by default the one that ``hf auth login`` stored.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        DataError: If the Hub refuses or is out of reach.
    """
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(source, str | Path) and (Path(source) / CONFIG).is_file():
            load(source)  # nothing damaged goes out
            folder = Path(source)
        else:
            folder = save_pretrained(source, scratch, weights=weights)
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=message, allow_patterns=PATTERNS
            )
        except _hub_errors() as error:
            raise DataError(
                f"the Hugging Face Hub did not take {repository} ({_reason(error)}); log in with 'hf auth login', or "
                f"give a token that may write there"
            ) from error
    return str(commit)


def described(
    source: nn.Module | str | Path,
    *,
    weights: str = "last",
    recipe: Recipe | None = None,
    data: Dataset | None = None,
) -> Network:
    """Return what :func:`save_pretrained` would write.

    Raises:
        UsageError: If it is not said how a network is built, or it is not built so.
        DataError: If a run cannot be read.
    """
    if not isinstance(source, nn.Module):
        if recipe is not None or data is not None:
            raise UsageError(
                f"recipe and data are for networks in memory; the run {source} has its own: leave them out"
            )
        return of_run(Path(source), weights=weights)
    if (recipe is None) != (data is None):
        raise UsageError("recipe and data belong together: give both, or a network that from_pretrained returned")
    if recipe is not None and data is not None:
        description = _description(recipe, data)
    elif isinstance(getattr(source, "description", None), Description):
        description = _after_changes(source)
    else:
        raise UsageError(
            "how is this network built? Give recipe=Recipe(model='nopre29', ...) and data=mpelu.data.load(...), which "
            "it was trained on; or the folder of its run"
        )
    own = f"{description.recipe.model}" if ":" in description.recipe.model else None
    if own is None:
        _check_state(source.state_dict(), built(description), where="the network")
    return Network(source, description)


def _description(recipe: Recipe, data: Dataset) -> Description:
    activation = recipe.activation if takes_activation(recipe.model) else AS_BUILT
    recipe = resolve(
        dataclasses.replace(recipe, activation=activation, data=data.name),
        family=family_of(recipe.model),
        image_size=data.image_shape[-1],
    )
    own = family_of(recipe.model) == OWN
    return Description(
        without_places(recipe, data.name),
        without_images(data),
        hash_of(recipe, data),
        source_sha256(recipe.model) if own else "",
    )


def _after_changes(net: nn.Module) -> Description:
    """Return the description of a loaded network; one that was trained on has no result any more."""
    description: Description = net.description  # type: ignore[assignment]
    if digest(net) == getattr(net, "loaded_sha256", None):
        return description
    return dataclasses.replace(description, result=None, epoch=None, environment={})


def write(network: Network, folder: Path) -> Path:
    """Write a network to a folder; see :func:`save_pretrained`."""
    description = network.description
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MpeluError(f"cannot create the folder {folder} ({error.strerror}); choose another one") from error
    config = to_config(description) | {"files": {}}
    parts: dict[str, Mapping[str, Tensor]] = {WEIGHTS: network.net.state_dict()}
    image = mean_image(description)
    if image is not None:
        parts[MEAN] = {"mean": image}
    for name, tensors in parts.items():
        content = safetensors.torch.save(
            {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, {"format": "pt"}
        )
        config["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        write_atomically(folder / name, content)
    readme = folder / CARD
    if not readme.exists() or MARK in readme.read_text(errors="replace"):
        parameters = sum(parameter.numel() for parameter in network.net.parameters())
        write_atomically(readme, card(description, parameters=parameters).encode())
    write_atomically(folder / CONFIG, dumped(config).encode())
    return folder


def load(
    source: str | Path, *, revision: str | None = None, model: str | None = None, token: str | None = None
) -> Network:
    """Load a network with its description; see :func:`from_pretrained`."""
    folder = _folder(source, revision, token)
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); export the network again") from error
    files = config.get("files") if isinstance(config, dict) else None
    files = files if isinstance(files, dict) else {}
    image = None
    if MEAN in files:
        image = _tensors(folder / MEAN, files[MEAN]).get("mean")
    description = from_config(config, image, where=str(path))
    state = _tensors(folder / WEIGHTS, files.get(WEIGHTS))
    net = built(description, model=model)
    _check_state(state, net, where=str(folder / WEIGHTS), classes=len(description.data.classes))
    net.load_state_dict(state)
    net.description = description  # type: ignore[assignment]  # plain data, travels with copies of the module
    net.loaded_sha256 = digest(net)  # type: ignore[assignment]
    return Network(net.eval(), description)


def digest(net: nn.Module) -> str:
    """Return the sha256 over names and values of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        found.update(f"{name} {tuple(tensor.shape)}".encode() + raw)
    return found.hexdigest()


def _folder(source: str | Path, revision: str | None, token: str | None) -> Path:
    """Return a local folder that holds a config, from the Hub if need be."""
    place = Path(source)
    if place.suffix == ".safetensors" and place.is_file():
        if place.name != WEIGHTS:
            raise UsageError(
                f"weights without a config do not say what they are for; give a folder with {WEIGHTS} and {CONFIG}"
            )
        place = place.parent
    if place.is_dir():
        if not (place / CONFIG).is_file():
            raise DataError(
                f"{place} holds no {CONFIG}; 'mpelu export RUN --format safetensors --out {place}' makes one"
            )
        return place
    name = str(source)
    if place.is_file():
        raise DataError(f"{name} is a file; give the folder of a run, or one that 'mpelu export' wrote")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        raise DataError(f"there is no folder {name}; give one that 'mpelu export' wrote, or owner/name on the Hub")
    return _from_hub(name, revision, token)


def _from_hub(name: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=PATTERNS))
    except _hub_errors() as error:
        raise DataError(
            f"there is no folder {name} here, and the Hugging Face Hub did not give it ({_reason(error)}); check the "
            f"name, or give a local folder"
        ) from error
    if not (folder / CONFIG).is_file():
        raise DataError(f"{name} on the Hugging Face Hub has no {CONFIG}; it was not written by mpelu")
    return folder


def _hub_errors() -> tuple[type[BaseException], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # the first base is the root of the HTTP client's errors; which client that is differs between versions
    return OSError, RuntimeError, ValueError, HfHubHTTPError.__mro__[1]


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tensors(path: Path, wanted: Any) -> dict[str, Tensor]:
    """Read a file whose size and digest the config has.

    Raises:
        DataError: If it is missing, or not the file that the config was written with.
    """
    if not (isinstance(wanted, dict) and {"sha256", "bytes"} <= set(wanted)):
        raise DataError(f"{path.parent / CONFIG} has no sha256 of {path.name}; export the network again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); export the network again") from error
    if len(content) != wanted["bytes"]:
        raise DataError(
            f"{path} is damaged or of another export: {wanted['bytes']:,} bytes were written, {len(content):,} are "
            f"there; get it again"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != wanted["sha256"]:
        raise DataError(
            f"{path} is damaged or of another export: its sha256 is {found[:12]}..., {CONFIG} has "
            f"{str(wanted['sha256'])[:12]}...; get it again"
        )
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no safetensors file ({error}); export the network again") from error


def _check_state(state: Mapping[str, Tensor], net: nn.Module, *, where: str, classes: int | None = None) -> None:
    """Raise a DataError that names every weight that is missing, left over or of another shape."""
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state]
    left = sorted(name for name in state if name not in wanted)
    shapes = [
        f"{name} is {tuple(state[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if not (missing or left or shapes):
        return
    problems = [
        f"{kind}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("not of this network", left), ("of another shape", shapes))
        if names
    ]
    heads = [name for name in wanted if name in state and state[name].shape[1:] == wanted[name].shape[1:]]
    wrong = {int(state[name].shape[0]) for name in heads if state[name].shape != wanted[name].shape}
    only_head = not (missing or left) and len(wrong) == 1 and len(shapes) <= 2
    count = f" They are for {wrong.pop()} classes, the config lists {classes}." if only_head and classes else ""
    raise DataError(
        f"the weights of {where} are not those of its recipe; {'; '.join(problems)}.{count} Export the network again"
    )
