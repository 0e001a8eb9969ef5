import pickle
from dataclasses import replace

import pytest

from mpelu.studies.jobs import Measurement, Training, key, key_of
from mpelu.train.recipe import Recipe
from tests.made_up import record

JOB = Training(Recipe(model="plain15", layer_std={"fc1.weight": 0.1}, augment="none"), 3)


def test_the_key_of_a_training_is_that_of_its_record():
    assert key(JOB) == JOB.key == key_of(record(JOB.recipe, JOB.seed, "digits"))


def test_a_key_that_was_asked_for_stays_with_its_job_alone():
    asked, same = JOB.key, Training(JOB.recipe, JOB.seed)
    assert same == JOB
    assert pickle.loads(pickle.dumps(JOB)).key == asked
    others = [replace(JOB, seed=4), replace(JOB, recipe=replace(JOB.recipe, layer_std={"fc1.weight": 0.2}))]
    assert len({asked, *(key(other) for other in others)}) == 3


def test_a_path_gives_way_to_the_name_of_its_data():
    there = replace(JOB, recipe=replace(JOB.recipe, data="some/folder"))
    assert key(there, "digits") == key(JOB)
    assert key(there) != key(JOB)
    measured = Measurement("module:function", data="some/folder")
    assert key(measured, "digits") == key(replace(measured, data="digits"))
    assert key(Measurement("module:function"), "digits") == key(Measurement("module:function"))


def test_a_recipe_must_name_its_augmentation():
    with pytest.raises(ValueError, match="must name its augmentation"):
        key(replace(JOB, recipe=Recipe(model="plain15")))
