"""Pages from templates: values are escaped, and none may be missing."""

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from fedhpc.util.html import rendered

REPO = Path(__file__).resolve().parents[2]


def test_values_are_escaped(tmp_path: Path) -> None:
    template = tmp_path / "page.html.jinja"
    template.write_text('<b title="{{ name }}">{{ name }}</b>{{ drawn | safe }}\n', encoding="utf-8")
    hostile = "<script>'\"&"
    made = rendered(template, name=hostile, drawn="<svg/>")
    assert made == '<b title="&lt;script&gt;&#39;&#34;&amp;">&lt;script&gt;&#39;&#34;&amp;</b><svg/>\n'


def test_missing_value_is_an_error(tmp_path: Path) -> None:
    template = tmp_path / "page.html.jinja"
    template.write_text("{{ name }}", encoding="utf-8")
    with pytest.raises(UndefinedError, match="name"):
        rendered(template)


@pytest.mark.parametrize("template", sorted((REPO / "fedhpc").rglob("*.jinja")), ids=lambda path: path.parent.name)
def test_page_needs_nothing_from_elsewhere(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    assert not any(word in text for word in ("<link", "http:", "https:", 'src="/', "@import", "url("))
    # The report alone has a script, and holds it and its data itself.
    own = {"<script>", '<script type="application/json" id="facts">'} if template.parent.name == "templates" else set()
    assert set(re.findall(r"<script[^>]*>", text)) <= own
