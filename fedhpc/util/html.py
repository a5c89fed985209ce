"""HTML pages from Jinja templates that lie beside the code which fills them."""

from pathlib import Path
from typing import Any


def rendered(template: Path, **values: Any) -> str:
    """Return a template filled with values.

    Every value is escaped, except where the template says `| safe`. A name that is not given is an error.

    Args:
        template: the file; it may include others of its folder.
        values: by the names that the template uses.
    """
    # Pages are made at the end of a run: its ranks need not load this to start.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
