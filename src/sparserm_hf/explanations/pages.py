"""Fill the HTML templates in this folder."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader

from ..runtime import visible


@cache
def _environment() -> Environment:
    loader = PackageLoader("sparserm_hf.explanations", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    return environment


def render_page(template: str, **values: Any) -> str:
    """Fill a template; every value except `Markup` is escaped.

    Args:
        template: File name of the template.
        values: Values by their names in the template.
    """
    return _environment().get_template(template).render(values)
