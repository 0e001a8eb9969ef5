import dataclasses
from dataclasses import replace

import pytest

from mpelu.errors import UsageError
from mpelu.train.recipe import Recipe, recipe_hash, recipe_name, resolve

CHANGED = {
    "model": "nopre11", "activation": "elu", "alpha": 0.5, "beta": 2.0, "width": 8, "batch_norm": True, "dropout": 0.5,
    "model_options": {"shortcut": "B"}, "layer_std": {"fc.*": 0.1}, "layer_lr": {"fc.*": 0.1}, "preprocess": "gcn_zca",
    "resize": 8, "center": "none", "pixel_scale": "raw", "stream": "squash", "damaged": "skip",
    "accumulate": 2, "sync_batch_norm": True,
    "init": "msra", "init_mode": "average", "init_std": 0.02, "limit": 10, "augment": "crop28", "epochs": 3,
    "batch_size": 7, "lr": 0.3, "schedule": "cosine", "milestones": (0.5,), "warmup_epochs": 1, "warmup_lr": 0.02,
    "momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "alpha_beta_lr": 1.0, "alpha_beta_weight_decay": 10.0,
    "bias_lr": 2.0, "bias_weight_decay": 0.0, "clip_norm": 1.0, "precision": "bf16", "compile": True,
    "channels_last": False,
}  # fmt: skip


def test_hash_changes_with_every_field_but_not_with_the_path_of_the_data():
    assert set(CHANGED) == {field.name for field in dataclasses.fields(Recipe)} - {"data"}
    hashes = {recipe_hash(replace(Recipe(), **{name: value}), "0") for name, value in CHANGED.items()}
    hashes.add(recipe_hash(Recipe(), "0"))
    hashes.add(recipe_hash(Recipe(), "1"))
    assert len(hashes) == len(CHANGED) + 2
    assert recipe_hash(Recipe(data="here"), "0") == recipe_hash(Recipe(data="there"), "0")


def test_hash_changes_with_the_code_of_a_network_and_not_with_its_place():
    here, there = Recipe(model="here.py:build"), Recipe(model="there.py:build")
    assert recipe_hash(here, "0", "code") == recipe_hash(there, "0", "code")
    assert recipe_hash(here, "0", "code") != recipe_hash(here, "0", "other code")
    assert recipe_hash(here, "0", "code") != recipe_hash(Recipe(model="here.py:wider"), "0", "code")


@pytest.mark.parametrize(
    ("model", "name"),
    [("nopre11", "nopre11-elu-eq22"), ("../my nets/net.py:build", "my-nets-net.py-build-elu-eq22")],
)
def test_names_are_names_of_folders(model, name):
    assert recipe_name(Recipe(model=model, activation="elu")) == name


def test_resolve_leaves_nothing_of_the_family_open_and_keeps_what_was_given():
    resolved = resolve(Recipe(model="plain30", lr=0.5), family="plain", image_size=16)
    assert (resolved.lr, resolved.batch_size, resolved.epochs, resolved.weight_decay) == (0.5, 64, 38, 5e-4)
    assert resolved.augment == "none"
    assert resolve(Recipe(), family="nopre", image_size=32).augment == "pad4"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0), ("lr", float("nan")), ("lr", float("inf")), ("epochs", 0), ("batch_size", -1), ("beta", 0.0),
        ("accumulate", 0),
        ("dropout", 1.0), ("momentum", 1.0), ("milestones", (0.6, 0.4)), ("milestones", (1.5,)), ("weight_decay", -1.0),
        ("alpha", float("nan")), ("limit", 0), ("resize", 0), ("clip_norm", -1.0), ("warmup_epochs", -1),
        ("layer_std", {"fc.weight": -1.0}), ("layer_lr", {"fc.weight": float("nan")}),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} must be"):
        Recipe(**{name: value})


def test_all_problems_are_listed_at_once():
    with pytest.raises(UsageError, match=r"epochs must be .*; lr must be "):
        Recipe(lr=-1.0, epochs=0)
