"""Rendering of the page templates beside this module."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from zk0.report.page.report_terms import REPORT_TERMS, report_term, term_id

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"report_term": report_term, "term_id": term_id}
_TEMPLATES.globals["report_terms"] = REPORT_TERMS


def render_template(template: str, **values: Any) -> str:
    """Render a template. Values are HTML-escaped; a missing value raises an error."""
    return _TEMPLATES.get_template(template).render(**values)
