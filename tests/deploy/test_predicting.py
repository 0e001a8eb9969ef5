import pytest
import torch
from PIL import Image
from torch import nn

from mpelu.data import evaluation_inputs
from mpelu.deploy import Network, evaluate, open_network, predict
from mpelu.errors import DataError, UsageError
from mpelu.train.records import read_result


def paths(folder):
    return [str(folder / f"{number}.png") for number in range(10)]


def test_answers_are_those_of_the_network_on_its_test_images(network, digits, pictures):
    found = list(predict(network, paths(pictures), top=3, batch=4))
    logits = network.net(evaluation_inputs(digits, digits.test.images[:10], "crop14"))
    values, indices = logits.softmax(1).topk(3)
    assert [each.image for each in found] == paths(pictures)
    assert [[guess.index for guess in each.top] for each in found] == indices.tolist()
    assert [[guess.label for guess in each.top] for each in found] == [
        [str(i) for i in row] for row in indices.tolist()
    ]
    probabilities = torch.tensor([[guess.probability for guess in each.top] for each in found])
    torch.testing.assert_close(probabilities, values.detach(), rtol=1e-5, atol=1e-6)


def test_fewer_classes_than_asked_for(network, pictures):
    (found,) = predict(network, paths(pictures)[:1], top=99)
    assert sorted(guess.index for guess in found.top) == list(range(10))
    assert sum(guess.probability for guess in found.top) == pytest.approx(1)


def test_what_cannot_be_read_does_not_stop_the_rest(network, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    given = [paths(pictures)[0], str(tmp_path / "bad.png"), str(tmp_path / "none.png"), paths(pictures)[1]]
    found = list(predict(network, given, batch=2))
    assert [each.error for each in found] == [
        None,
        "the bytes are not a whole image (no known format)",
        "No such file or directory",
        None,
    ]
    assert found[1].top == ()
    again = list(predict(network, [given[0], given[3]], batch=1))
    for one, other in zip((found[0], found[3]), again, strict=True):
        assert [guess.index for guess in one.top] == [guess.index for guess in other.top]
    assert [each.error is None for each in predict(network, given[1:3])] == [False, False]


def test_a_run_and_its_export_agree(trained, network, pictures):
    of_run = list(predict(open_network(str(trained)), paths(pictures)))
    assert of_run == list(predict(network, paths(pictures)))


def test_weights_of_a_run_or_those_that_are_there(trained, kept):
    assert open_network(str(trained), weights="best").description.weights == "best"
    assert open_network(str(kept), weights="last").description.weights == "last"
    with pytest.raises(UsageError, match="holds the weights of the last epoch, not of the best one"):
        open_network(str(kept), weights="best")
    with pytest.raises(UsageError, match="weights must be last or best, got 'first'"):
        open_network(str(trained), weights="first")
    with pytest.raises(UsageError, match="a run knows its own network"):
        open_network(str(trained), model="x.py:build")
    with pytest.raises(DataError, match="there is no folder"):
        open_network(str(kept / "none"))


def test_photographs(digits, tmp_path):
    """A net for photographs is given what the stream of its own test images gives."""
    from mpelu.data import Normalization, PhotographSet, Stream, View
    from mpelu.data.photographs import FolderPhotographs
    from mpelu.deploy import Description, images
    from mpelu.train.recipe import Recipe
    from mpelu.train.supply import Photographs

    file = tmp_path / "a.png"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 70, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(pixels.numpy()).save(file)
    listed = FolderPhotographs((file,), torch.zeros(1, dtype=torch.int64))
    for view, mean in (
        (View(size=40, crop=31), torch.rand(3, 40, 40)),
        (View("short", size=40, crop=31), torch.rand(3, 1, 1)),
    ):
        shift = Normalization(mean, torch.full((3, 1, 1), 2.0))
        (batch,) = Stream(listed, 1, view, batch_size=1).evaluation()
        wanted = shift.apply(batch.images, batch.corners, batch.mirrored)
        data = Photographs(PhotographSet("a", ("a",), listed, listed, ""), view, shift)
        description = Description(Recipe(stream=view.resize), data, "")
        square = images.pixels(images.decode(file.read_bytes()), description)
        assert torch.equal(images.inputs([square], description), wanted)


def test_networks_that_answer_something_else(network, pictures):
    net = Network(nn.Flatten(), network.description)
    with pytest.raises(DataError, match=r"a number for each of the 10 classes, shape \(10, 10\), got \(10, 196\)"):
        list(predict(net, paths(pictures)))


def test_whitened_images_are_refused(network, pictures):
    from dataclasses import replace

    recipe = replace(network.description.recipe, preprocess="gcn_zca")
    whitened = Network(network.net, replace(network.description, recipe=recipe))
    with pytest.raises(UsageError, match="preprocessed by gcn_zca with the statistics of digits"):
        next(predict(whitened, paths(pictures)))


def test_numbers_below_one(network):
    with pytest.raises(UsageError, match="--top and --batch must be at least 1, got 0 and 64"):
        next(predict(network, [], top=0))


def test_an_export_is_tested_as_its_run(trained, kept):
    found = evaluate(kept, data="digits")
    assert found.test_error_percent == read_result(trained)["last"]["test_error_percent"]
    assert evaluate(trained).test_error_percent == found.test_error_percent
    with pytest.raises(UsageError, match="which holds no images: name those to test with, --data digits"):
        evaluate(kept)
