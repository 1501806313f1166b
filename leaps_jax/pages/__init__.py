"""Pages in HTML from templates; whatever text they are given is escaped.

A page holds its style and its script, and its policy names their digests: a browser
runs nothing else and asks for nothing else, whatever a page came to hold.

>>> "<b>" in render("run.html", **values)                       # doctest: +SKIP
False
"""

import base64
import functools
import hashlib
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


class Inline(NamedTuple):
    """A style or a script within a page, and how a policy names it."""

    text: Markup
    digest: str


def render(template: str, *, script: str | None = None, **values: Any) -> str:
    """A page in HTML.

    Args:
      template: the name of a file in `templates/`.
      script: likewise, of what runs in the page.
      **values: what the template shows.
    """
    shared = {"style": _inline("page.css"), "script": script and _inline(script)}
    return _environment().get_template(template).render(shared | values)


def data_uri(kind: str, content: bytes) -> str:
    """A file as an address that holds it.

    >>> data_uri("image/jpeg", b"abc")
    'data:image/jpeg;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def percent(share: float) -> str:
    r"""A share for a reader, of whom none is promised certainty.

    >>> percent(0.934), percent(0.9999), percent(0.0004), percent(0.0)
    ('93\xa0%', '>\xa099\xa0%', '<\xa01\xa0%', '0\xa0%')
    """
    space = "\N{NO-BREAK SPACE}"
    if 0 < share < 0.005:
        return f"<{space}1{space}%"
    if 0.995 <= share < 1:
        return f">{space}99{space}%"
    return f"{100 * share:.0f}{space}%"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("leaps_jax.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


@functools.cache
def _inline(name: str) -> Inline:
    text = (resources.files("leaps_jax.pages") / "templates" / name).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Inline(Markup(text), f"'sha256-{digest}'")
