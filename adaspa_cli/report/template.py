"""Pages from templates, all in one look: whole in themselves, so that they can be moved, sent and read offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

SHARED = Path(__file__).parent  # where style.css lies


def render(template: Path, **data: Any) -> str:
    """Fill a template; text is escaped, and a name that has no value is an error."""
    loader = jinja2.FileSystemLoader([template.parent, SHARED])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template.name).render(**data)
