import torch
from hypothesis import given
from hypothesis import strategies as st

from mpelu.data.batches import epoch_order, rank_slice, steps_per_epoch, stream_seed


@given(count=st.integers(1, 300), processes=st.integers(1, 9))
def test_slices_of_the_processes_make_up_the_batch(count, processes):
    parts = [rank_slice(count, rank=rank, processes=processes) for rank in range(processes)]
    assert [index for part in parts for index in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_only():
    torch.manual_seed(0)
    first = epoch_order(50, seed=1, epoch=2)
    torch.manual_seed(1)
    assert torch.equal(first, epoch_order(50, seed=1, epoch=2))
    assert first.sort().values.tolist() == list(range(50))
    assert not torch.equal(first, epoch_order(50, seed=1, epoch=3))
    assert not torch.equal(first, epoch_order(50, seed=2, epoch=2))


def test_last_batch_is_kept():
    assert [steps_per_epoch(count, 32) for count in (1, 32, 33, 96)] == [1, 1, 2, 3]


def test_seeds_of_purposes_do_not_collide():
    seeds = {
        stream_seed(seed, purpose, step) for seed in range(10) for purpose in ("order", "augment") for step in range(50)
    }
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
