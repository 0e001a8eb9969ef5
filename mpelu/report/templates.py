"""The templates of pages: everything is escaped that the template itself does not call safe."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates() -> Environment:
    """Return the environment that renders the ``.jinja`` files of this folder."""
    return Environment(
        loader=PackageLoader("mpelu.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
