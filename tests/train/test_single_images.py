"""Steps that end up with one image, which torch refuses to normalize where it has become a vector."""

from dataclasses import replace

import pytest

from mpelu.errors import UsageError
from mpelu.train.run import prepare, run


@pytest.mark.parametrize("change", [{"limit": 97}, {"accumulate": 32}])
def test_one_image_is_refused_before_the_epoch_ends(small, tmp_path, change):
    with pytest.raises(UsageError, match=r"plain9 normalizes vectors .* one is left alone"):
        run(prepare(replace(small, **change), seed=1, runs=tmp_path), device="cpu")


def test_one_image_is_enough_without_batch_norm(small, tmp_path):
    recipe = replace(small, limit=97, batch_norm=False, epochs=1)
    assert run(prepare(recipe, seed=1, runs=tmp_path), device="cpu")["outcome"] == "finished"
