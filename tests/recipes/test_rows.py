"""What holds for every row, whoever wrote it."""

import dataclasses
import fnmatch
import re
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest
import torch

import mpelu.recipes
from mpelu.cli import COMMANDS
from mpelu.models import build_model, family_of
from mpelu.recipes import duration, listing, rows
from mpelu.recipes.catalog import MODULES
from mpelu.report.paper import line
from mpelu.studies.jobs import Training, key
from mpelu.train.recipe import Recipe, resolve

ROWS = rows()
NAMES = [row.name for row in ROWS]
SCALES = ("paper", "cpu")
every_row = pytest.mark.parametrize("row", ROWS, ids=NAMES)
every_module = pytest.mark.parametrize("module", MODULES)


def test_every_file_of_recipes_is_in_the_catalog():
    folder = Path(mpelu.recipes.__file__).parent
    holding_rows = {path.stem for path in folder.glob("*.py") if re.search(r"^ROWS\b", path.read_text(), re.M)}
    assert holding_rows == set(MODULES)


def test_names_are_unique():
    assert len(NAMES) > 10
    assert len(set(NAMES)) == len(NAMES)
    for row in ROWS:
        assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", row.name)
        assert not set("|*<&`\n") & set(row.about), "it stands in a Markdown table"


@every_row
def test_nothing_is_left_open(row):
    for scale in SCALES:
        for follow in ("paper", "code"):
            recipe = row.recipe(scale, follow=follow)
            full = resolve(recipe, family=family_of(recipe.model), image_size=duration.images_of(recipe).size)
            assert None not in (full.epochs, full.batch_size, full.lr, full.milestones, full.weight_decay)


@every_row
def test_keys_need_no_data(row):
    keys = {key(Training(row.recipe(scale), seed=0)) for scale in SCALES}
    assert len(keys) == 2


@every_row
def test_scale_cpu_is_small_and_says_what_it_shortens(row):
    cpu = row.recipe("cpu")
    assert cpu.data == "digits"
    assert cpu.augment is not None
    assert row.recipe("cpu", data="elsewhere").data == "elsewhere"
    assert row.cpu
    assert row.factors
    assert duration.expected_seconds(cpu) < duration.expected_seconds(row.paper) / 100


@every_row
def test_the_code_is_followed_where_it_differs(row):
    follows = row.recipe(follow="code")
    assert {name: getattr(follows, name) for name in row.code} == dict(row.code)
    different = {name for name, value in vars(follows).items() if value != getattr(row.paper, name)}
    assert different == set(row.code), "code holds what is different only"


@every_row
def test_targets_are_cells_of_the_paper(row):
    for target in row.targets:
        assert target.column in line(target.table, target.where)


def test_the_command_line_trains_the_same_recipe():
    make_parser, _ = COMMANDS["train"]
    train = make_parser()
    for row in ROWS:
        for scale in SCALES:
            recipe = row.recipe(scale)
            train.set_defaults(dataclasses.asdict(recipe))
            options = train.parse_args([])
            assert Recipe(**{field.name: options[field.name] for field in dataclasses.fields(Recipe)}) == recipe


NETWORKS = {
    (step.model, step.activation, step.options): (recipe, duration.images_of(recipe))
    for row in ROWS
    for scale in SCALES
    for recipe in [row.recipe(scale)]
    for step in [duration.step_without_time(recipe)]
}
PATTERNS: dict[str, set[str]] = defaultdict(set)
for row in ROWS:
    for recipe in (row.recipe(scale, follow=follow) for scale in SCALES for follow in ("paper", "code")):
        PATTERNS[recipe.model] |= {*(recipe.layer_std or {}), *(recipe.layer_lr or {})}


@pytest.mark.parametrize("network", NETWORKS, ids=" ".join)
def test_networks_can_be_built(network):
    recipe, images = NETWORKS[network]
    with torch.device("meta"):
        net = build_model(
            recipe.model,
            num_classes=images.classes,
            in_channels=images.channels,
            input_size=images.size,
            activation=recipe.activation,
            options=duration.network_options(recipe),
        )
    names = [name for name, _ in net.named_parameters()]
    for pattern in PATTERNS[recipe.model]:
        assert fnmatch.filter(names, pattern), pattern


@every_row
def test_steps_are_in_the_table(row):
    known = duration.read(duration.TABLE)
    for scale in SCALES:
        step = duration.step_without_time(row.recipe(scale))
        assert step.key in known, "bring it up to date: python benchmarks/time_steps.py"


@every_row
def test_every_row_can_be_shown(row):
    shown = listing.as_json(row)
    assert shown["seconds"]["paper"]["expected"] > shown["seconds"]["cpu"]["expected"] > 0
    named = {name for name, *_ in listing.fields(row)}
    assert set(row.code) | (set(row.cpu) - {"limit", "resize"}) <= named
    assert len(listing.targets(row)) == len(row.targets)


@every_module
def test_modules_say_where_they_come_from_and_what_to_run(module):
    text = import_module(f"mpelu.recipes.{module}").__doc__
    for heading in ("Source:", "Target:", "Command:", "Duration:"):
        assert len(re.findall(rf"^{heading} +\S", text, re.M)) == 1, heading
    assert set(re.findall(r"--recipe (\S+?)[,.;)]*(?:\s|$)", text)) <= set(NAMES)
