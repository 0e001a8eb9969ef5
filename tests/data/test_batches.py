import pytest
import torch

from mpelu.data.batches import windowed_order


@pytest.mark.parametrize("window", [1, 3, 100])
def test_every_image_once_and_windows_one_after_the_other(window):
    starts = torch.tensor([0, 5, 6, 13, 20, 21, 30, 34])
    order, windows = windowed_order(starts, window, seed=0, epoch=2)
    assert sorted(order.tolist()) == list(range(34))
    assert torch.bincount(windows).tolist() == [len(part) for part in torch.arange(7).split(window)]
    seen = windows[torch.searchsorted(starts, order, right=True) - 1]
    assert (seen.diff() >= 0).all()


def test_order_follows_from_seed_and_epoch():
    starts = torch.arange(0, 1001, 10)
    order = [windowed_order(starts, 20, seed=seed, epoch=epoch)[0] for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(order[0], order[1])
    assert not torch.equal(order[0], order[2])
    assert not torch.equal(order[0], order[3])


def test_a_window_mixes_its_blocks():
    starts = torch.arange(0, 1001, 10)
    order, _ = windowed_order(starts, 20, seed=0, epoch=0)
    blocks = order // 10
    # 200 images of 20 blocks: two neighbours lie in one block with probability 9/199
    neighbours = (blocks[1:] == blocks[:-1]).float().mean()
    assert abs(float(neighbours) - 9 / 199) < 4 * (9 / 199 / 999) ** 0.5
