"""Show doctests of docstrings as code blocks in the API reference."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^(?P<indent>[ ]*)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class DoctestFences(griffe.Extension):
    """Put a Markdown fence around each doctest, which Markdown would read as quotation and links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object in place."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"\g<indent>```pycon\n\g<0>\n\g<indent>```", obj.docstring.value)
