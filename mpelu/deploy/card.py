"""The model card: a README.md made of what is known about a network, and of nothing else."""

import dataclasses
from collections.abc import Iterator

from mpelu.data import View
from mpelu.deploy.network import Description, Result
from mpelu.train.recipe import Recipe
from mpelu.train.supply import Photographs

MARK = "<!-- written by mpelu; delete this line to keep your own text -->"


def card(description: Description, *, parameters: int) -> str:
    """Return a model card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        description: Of the network.
        parameters: How many it has.
    """
    return "\n".join(_lines(description, parameters)) + "\n"


def _lines(description: Description, parameters: int) -> Iterator[str]:
    recipe, data = description.recipe, description.data
    yield from ("---", "library_name: mpelu", "pipeline_tag: image-classification")
    yield from ("tags:", "- mpelu", "- image-classification", "- pytorch", "---", MARK, "")
    yield from (f"# {recipe.model}, {recipe.activation}, on {data.name}", "")
    yield f"{parameters:,} parameters. {_result(description.result)}"
    yield from ("", "## Load it", "", "```python", "import mpelu", "")
    own = f', model="path/to/{recipe.model}"' if ":" in recipe.model else ""
    yield f'model = mpelu.from_pretrained("PATH/OR/OWNER/NAME"{own})  # runs no code of this folder'
    yield from ("```", "", "```", "mpelu predict PATH/OR/OWNER/NAME image.png", "```", "")
    yield from ("## What it takes", "")
    channels, height, width = description.input_shape
    colour = "grey" if channels == 1 else "RGB"
    yield f"- {colour} images, `float32` of shape `(N, {channels}, {height}, {width})`. {_view(description)}"
    yield f"- {_normalization(description)}"
    names = ", ".join(data.classes[:10])
    more = f" and {len(data.classes) - 10} more, in `config.json`" if len(data.classes) > 10 else ""
    yield f"- Out: a number for each of {len(data.classes)} classes, before softmax: {names}{more}."
    yield from ("", "## How it was trained", "")
    if description.epoch is None:
        yield "Not told: the weights were changed, or made, outside of `mpelu train`. It was built with these settings."
    else:
        which = "the last" if description.weights == "last" else "the one with the least test error"
        yield f"Weights after epoch {description.epoch} ({which}) of the recipe with hash `{description.recipe_hash}`."
    yield from ("", "| field | value |", "| --- | --- |")
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if value is not None:
            yield f"| {field.name} | {_cell(value)} |"
    yield from ("", f"Data: {data.name}, sha256 `{data.sha256[:16]}...`.")
    if description.folded:
        yield "Wrappers of tailored activations were folded into the weights: for inference, not for further training."
    if description.environment:
        yield from ("", "## Environment", "", "| what | value |", "| --- | --- |")
        yield from (
            f"| {name} | {_cell(value)} |" for name, value in description.environment.items() if value is not None
        )


def _result(result: Result | None) -> str:
    if result is None:
        return "Its test error was not measured."
    seed = "" if result.seed is None else f" (seed {result.seed})"
    chosen = (
        " The epoch was chosen by this very number, which makes it look better than it is." if result.best_epoch else ""
    )
    return (
        f"Test error **{result.error_percent:.2f} %** on the {result.images:,} test images of {result.data}, "
        f"of n = 1 training{seed}.{chosen}"
    )


def _view(description: Description) -> str:
    data = description.data
    if isinstance(data, Photographs):
        view: View = data.view
        how = f"squashed to {view.size} x {view.size}" if view.resize == "squash" else f"short side to {view.size}"
        return f"Photographs are resized ({how} pixels, bilinear), of which the centre of {view.crop} is taken."
    _, height, width = data.image_shape
    cut = (
        ""
        if description.input_shape[1] == height
        else f"; of these, the centre of {description.input_shape[1]} is taken"
    )
    return f"Others are resized to {height} x {width}, whatever their aspect (bilinear){cut}."


def _normalization(description: Description) -> str:
    data = description.data
    if isinstance(data, Photographs):
        normalization = data.normalization
        shown = "the mean image in `mean.safetensors`"
        if normalization.mean.shape[-1] == 1:
            shown = _numbers(normalization.mean.flatten().tolist())
        divisor = _numbers(normalization.std.flatten().tolist())
        return f"Of pixels 0 to 255, {shown} is subtracted; then divided by {divisor}."
    if data.preprocess != "none":
        return f"Images are preprocessed by {data.preprocess} with the statistics of {data.name}."
    shown = _numbers(data.mean) if data.mean_image is None else "the mean image in `mean.safetensors`"
    return f"Of pixels 0 to 1, {shown} is subtracted; then divided by {_numbers(data.std)}."


def _numbers(values: tuple[float, ...] | list[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
