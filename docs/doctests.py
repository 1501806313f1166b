"""Examples within docstrings (`>>> ...`) as blocks of code; mkdocstrings runs this."""

import re

import griffe

#: Lines from one that begins with `>>>` to the next empty one.
_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).+)*", re.M)
_DIRECTIVE = re.compile(r"[ ]*# doctest: .*")


class Doctests(griffe.Extension):
    """Puts examples into code blocks; Markdown would show them as quotations."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Changes the docstring of one object."""
        if obj.docstring:
            text = _DIRECTIVE.sub("", obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
