"""The page in a headless browser, where there is one: it runs, asks for nothing, and fits a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.test_report import on, row

HARNESS = """<!doctype html><meta charset="utf-8"><iframe id="page" style="width: {width}px; height: 800px; border: 0"
srcdoc="{page}"></iframe><pre id="found"></pre><script>
const frame = document.getElementById("page"), errors = [];
frame.addEventListener("load", () => {{
  const inside = frame.contentDocument, view = frame.contentWindow;
  view.addEventListener("error", (event) => errors.push(event.message));
  inside.getElementById("theme").click();
  inside.querySelectorAll("details").forEach((one) => {{ one.open = true; }});
  const mark = inside.querySelector("[data-tip]");
  mark.dispatchEvent(new PointerEvent("pointerover", {{ bubbles: true }}));
  document.getElementById("found").textContent = JSON.stringify({{
    width: inside.documentElement.scrollWidth, theme: inside.documentElement.dataset.theme,
    tip: inside.getElementById("tip").textContent === mark.dataset.tip && !inside.getElementById("tip").hidden,
    requests: view.performance.getEntriesByType("resource").length, errors,
  }});
}});
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_page_runs_and_fits_in_browser(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium: it is no part of the project")
    points = [(e, d) for e in (1.0, 4.0, None) for d in (0.1, 1.0)]
    rows = [
        row(f"a-long-name-of-a-run-{e}-{d}", {"privacy.epsilon": e, "exchange.density": d}, 0.9, bytes_up=1e6 * d)
        for e, d in points
    ]
    page = on("<b>many</b> settings", ("privacy.epsilon", "exchange.density"), rows).html()
    file = tmp_path / "harness.html"
    file.write_text(HARNESS.format(width=width, page=html.escape(page)), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    dom = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    text = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert text is not None
    found = json.loads(html.unescape(text[1]))
    assert found.pop("width") <= width
    assert found == {"theme": "dark", "tip": True, "requests": 0, "errors": []}
