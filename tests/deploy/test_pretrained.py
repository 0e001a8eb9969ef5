import copy
import json
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi
from torch import nn

import mpelu
from mpelu.data import View
from mpelu.deploy import pretrained
from mpelu.deploy.config import dumped, from_config, mean_image, to_config
from mpelu.deploy.network import Description, Network
from mpelu.deploy.pretrained import CARD, CONFIG, WEIGHTS, load
from mpelu.errors import DataError, MpeluError, UsageError
from mpelu.train.evaluation import load_trained
from mpelu.train.recipe import Recipe
from mpelu.train.records import read_result


def change(folder, **values):
    """Write other values to a config; None takes one away."""
    config = json.loads((folder / CONFIG).read_text())
    for dotted, value in values.items():
        *path, last = dotted.split("__")
        place = config
        for key in path:
            place = place[key]
        place[last] = value
    (folder / CONFIG).write_text(json.dumps(config))


def rewrite(folder, change_state):
    """Write other weights, with the digest that belongs to them."""
    state = safetensors.torch.load_file(folder / WEIGHTS)
    change_state(state)
    content = safetensors.torch.save(state)
    (folder / WEIGHTS).write_bytes(content)
    import hashlib

    change(folder, files={WEIGHTS: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}})


def test_a_run_comes_back_as_it_was(trained, kept, digits):
    net = mpelu.from_pretrained(kept)
    wanted = load_trained(trained)
    assert not net.training
    assert all(torch.equal(net.state_dict()[name], value) for name, value in wanted.net.state_dict().items())
    record = read_result(trained)
    description = net.description
    assert description.recipe_hash == record["hash"]
    assert description.recipe == wanted.recipe
    assert description.data.classes == digits.classes
    assert (description.data.mean, description.data.std) == (digits.mean, digits.std)
    assert description.input_shape == (1, 14, 14)
    assert description.result.error_percent == record["last"]["test_error_percent"]
    assert (description.result.images, description.result.seed) == (297, 3)
    assert description.environment == record["environment"]
    assert description.epoch == 2


def test_the_best_epoch_says_that_it_was_chosen(trained, tmp_path):
    folder = mpelu.save_pretrained(trained, tmp_path, weights="best")
    result = load(folder).description.result
    assert result.best_epoch
    assert result.error_percent == read_result(trained)["best"]["test_error_percent"]
    assert "chosen by this very number" in (folder / CARD).read_text()


def test_loading_leaves_random_numbers_and_the_process_as_they_were(kept):
    before = torch.get_rng_state()
    mpelu.from_pretrained(kept)
    assert torch.equal(torch.get_rng_state(), before)


def test_copies_and_pickles_keep_the_description(kept):
    net = mpelu.from_pretrained(kept)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.description.recipe == net.description.recipe


def test_saving_again_keeps_the_result_of_unchanged_weights_only(kept, tmp_path):
    net = mpelu.from_pretrained(kept)
    again = load(mpelu.save_pretrained(net, tmp_path / "same"))
    assert again.description.result == net.description.result
    with torch.no_grad():
        next(net.parameters()).add_(1)
    changed = load(mpelu.save_pretrained(net, tmp_path / "changed"))
    assert changed.description.result is None
    assert "not measured" in (tmp_path / "changed" / CARD).read_text()


def test_a_network_in_memory_with_its_recipe(digits, tmp_path):
    net = mpelu.create_model("plain9", 10, in_channels=1, input_size=16, width=4)
    recipe = Recipe(model="plain9", width=4)
    folder = mpelu.save_pretrained(net, tmp_path / "net", recipe=recipe, data=digits)
    again = mpelu.from_pretrained(str(folder))
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(again(x), net.eval()(x))
    with pytest.raises(UsageError, match=r"how is this network built\? Give recipe="):
        mpelu.save_pretrained(net, tmp_path)
    with pytest.raises(UsageError, match="belong together"):
        mpelu.save_pretrained(net, tmp_path, recipe=recipe)
    with pytest.raises(DataError, match=r"not those of its recipe; of another shape: conv1\.weight is"):
        mpelu.save_pretrained(net, tmp_path, recipe=Recipe(model="plain9", width=8), data=digits)
    with pytest.raises(DataError, match=r"missing: .* and .* more"):
        mpelu.save_pretrained(nn.Linear(2, 2), tmp_path, recipe=recipe, data=digits)


def test_the_config_says_everything(network):
    config = to_config(network.description)
    again = from_config(json.loads(dumped(config)), mean_image(network.description), where="here")
    assert to_config(again) == config
    assert again.recipe == network.description.recipe


def test_mean_images_are_kept(digits, tmp_path):
    net = mpelu.create_model("plain9", 10, in_channels=1, input_size=16)
    centred = digits.centered("image", "raw")
    recipe = Recipe(model="plain9", center="image", pixel_scale="raw")
    folder = mpelu.save_pretrained(net, tmp_path / "net", recipe=recipe, data=centred)
    found = mpelu.from_pretrained(folder).description.data
    assert torch.equal(found.mean_image, centred.mean_image)
    assert found.std == centred.std
    (folder / "mean.safetensors").unlink()
    with pytest.raises(DataError, match=r"cannot read .*mean.safetensors"):
        mpelu.from_pretrained(folder)


def test_photographs_keep_their_view(digits):
    from mpelu.data import Normalization, PhotographSet
    from mpelu.data.photographs import FolderPhotographs
    from mpelu.train.supply import Photographs

    none = FolderPhotographs((), torch.empty(0, dtype=torch.int64))
    listed = PhotographSet("birds", ("owl", "tit"), none, none, "abc")
    image = torch.rand(3, 40, 40)
    data = Photographs(listed, View(size=40, crop=32), Normalization(image, torch.ones(3, 1, 1)))
    description = Description(Recipe(model="nopre29", stream="squash", center="image"), data, "00000000")
    again = from_config(json.loads(dumped(to_config(description))), image, where="here")
    assert again.data.view == data.view
    assert again.input_shape == (3, 32, 32)
    assert torch.equal(again.data.normalization.mean, image)
    assert torch.equal(mean_image(again), image)


def test_damage_is_found(exported):
    content = bytearray((exported / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (exported / WEIGHTS).write_bytes(content)
    with pytest.raises(DataError, match=r"model.safetensors is damaged or of another export: its sha256 is"):
        mpelu.from_pretrained(exported)
    (exported / WEIGHTS).write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"bytes were written"):
        mpelu.from_pretrained(exported)
    (exported / WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"cannot read .*model.safetensors"):
        mpelu.from_pretrained(exported)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must have the format 'mpelu network 1', got 'list'"),
        ('{"format": "mpelu network 9"}', "got 'mpelu network 9'"),
        ('{"format": "mpelu network 1"}', "not a whole config .KeyError: 'recipe'"),
    ],
)
def test_other_configs_are_refused(exported, text, message):
    (exported / CONFIG).write_text(text)
    with pytest.raises(DataError, match=message):
        mpelu.from_pretrained(exported)


def test_recipes_of_other_versions_are_refused(exported):
    change(exported, recipe__sparkle=1, mpelu="9.9")
    with pytest.raises(DataError, match=r"does not know \(sparkle\); it was written by 9\.9"):
        mpelu.from_pretrained(exported)


def test_another_class_count_is_said(exported):
    change(exported, data__classes=["a", "b", "c"])
    with pytest.raises(DataError, match="They are for 10 classes, the config lists 3"):
        mpelu.from_pretrained(exported)


def test_another_architecture_is_said(exported):
    change(exported, recipe__model="plain10")
    with pytest.raises(DataError, match="not those of its recipe; missing: "):
        mpelu.from_pretrained(exported)
    change(exported, recipe__model="plain9", recipe__activation="relu", recipe__alpha=None)
    with pytest.raises(DataError, match=r"not of this network: act1\.alpha, act1\.beta, .* and \d+ more"):
        mpelu.from_pretrained(exported)


def test_missing_and_unexpected_weights_are_named(exported):
    def swap(state):
        state["extra"] = state.pop("conv1.weight")

    rewrite(exported, swap)
    with pytest.raises(DataError, match=r"missing: conv1\.weight; not of this network: extra"):
        mpelu.from_pretrained(exported)


def test_what_is_no_folder(tmp_path, trained):
    with pytest.raises(DataError, match="there is no folder"):
        mpelu.from_pretrained(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no config\.json; 'mpelu export RUN"):
        mpelu.from_pretrained(trained)
    with pytest.raises(UsageError, match="do not say what they are for"):
        mpelu.from_pretrained(trained / "weights.safetensors")


def test_the_weights_may_be_named_instead_of_their_folder(kept):
    assert mpelu.from_pretrained(kept / WEIGHTS).description.recipe.model == "plain9"


SOURCE = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("was run").touch()

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes))
"""


def test_code_is_run_only_if_it_is_named(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, trace = tmp_path / "some_net_of_a_test.py", tmp_path / "was run"
    file.write_text(SOURCE)
    recipe = Recipe(model=f"{file}:build", init="default")
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    folder = mpelu.save_pretrained(net, tmp_path / "net", recipe=recipe, data=digits)
    assert str(tmp_path) not in (folder / CONFIG).read_text()
    trace.unlink()
    with pytest.raises(UsageError, match=r"code is not run unasked: .*model='file\.py:build'"):
        mpelu.from_pretrained(folder)
    assert not trace.exists()
    again = mpelu.from_pretrained(folder, model=f"{file}:build")
    assert trace.exists()
    assert torch.equal(again[1].weight, net[1].weight)
    file.write_text(SOURCE + "\n# changed\n")
    with pytest.warns(RuntimeWarning, match="is not the one that was trained with"):
        mpelu.from_pretrained(folder, model=f"{file}:build")


def test_a_catalog_network_takes_no_code(kept, tmp_path):
    with pytest.raises(UsageError, match="needs no code of its own"):
        mpelu.from_pretrained(kept, model="x.py:build")


def test_no_option_fetches_other_files(exported):
    change(exported, recipe__model_options={"checkpoint_path": "evil.pth"})
    with pytest.raises(UsageError, match="model_options checkpoint_path would load further files"):
        mpelu.from_pretrained(exported)


def test_the_card(kept, trained):
    card = (kept / CARD).read_text()
    error = read_result(trained)["last"]["test_error_percent"]
    for part in (
        "library_name: mpelu",
        "# plain9, mpelu, on digits",
        f"**{error:.2f} %** on the 297 test images of digits, of n = 1 training (seed 3)",
        "| model | plain9 |",
        "| lr | 0.01 |",
        "| torch | ",
        "the centre of 14 is taken",
        "mpelu.from_pretrained(",
    ):
        assert part in card
    assert str(Path(trained).parents[2]) not in card


def test_a_card_of_ones_own_stays(exported, trained):
    (exported / CARD).write_text("mine")
    mpelu.save_pretrained(trained, exported)
    assert (exported / CARD).read_text() == "mine"


def test_folding_is_remembered(tailored, tmp_path):
    plain = mpelu.from_pretrained(mpelu.save_pretrained(tailored, tmp_path / "plain"))
    folded = mpelu.from_pretrained(mpelu.save_pretrained(tailored, tmp_path / "folded", fold=True))
    assert any(type(module).__name__ == "Transformed" for module in plain.modules())
    kept = [module for module in folded.modules() if type(module).__name__ == "Transformed"]
    assert len(kept) < sum(type(module).__name__ == "Transformed" for module in plain.modules())
    assert folded.description.folded
    x = torch.randn(4, 1, 14, 14)
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-4)


def test_a_folder_that_cannot_be_made(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MpeluError, match="cannot create the folder"):
        mpelu.save_pretrained(trained, tmp_path / "file" / "net")


def test_the_config_is_written_last(network, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(pretrained, "write_atomically", lambda path, content: written.append(path.name))
    pretrained.write(Network(network.net, network.description), tmp_path)
    assert written[0] == WEIGHTS
    assert written[-1] == CONFIG


def test_from_the_hub(kept, monkeypatch):
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(kept)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    net = mpelu.from_pretrained("someone/plain9", revision="v1")
    assert net.description.recipe.model == "plain9"
    assert (asked["name"], asked["revision"]) == ("someone/plain9", "v1")
    assert set(asked["allow_patterns"]) == {"config.json", "model.safetensors", "mean.safetensors", "README.md"}


def test_the_hub_does_not_answer(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(DataError, match=re.escape("the Hugging Face Hub did not give it (no route to host)")):
        mpelu.from_pretrained("someone/plain9")


def test_to_the_hub(kept, trained, exported, monkeypatch):
    sent = []

    def upload(self, *, repo_id, folder_path, commit_message, allow_patterns):
        sent.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir()), allow_patterns))
        return "https://hub/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, private, exist_ok: sent.append((name, private)))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    names = ["README.md", "config.json", "model.safetensors"]
    for source in (kept, trained, mpelu.from_pretrained(kept)):
        sent.clear()
        assert mpelu.push_to_hub(source, "me/net", private=True) == "https://hub/commit/1"
        assert sent[0] == ("me/net", True)
        assert sent[1][:2] == ("me/net", names)
    (exported / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(DataError, match="bytes were written"):
        mpelu.push_to_hub(exported, "me/net")


def test_the_hub_refuses(kept, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("not logged in")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(DataError, match=r"did not take me/net \(not logged in\); log in with 'hf auth login'"):
        mpelu.push_to_hub(kept, "me/net")


def test_the_code_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "deploy.md", "exec"), {})
    assert "('0', '1', '2'" in capsys.readouterr().out
    assert (tmp_path / "net" / CONFIG).is_file()
