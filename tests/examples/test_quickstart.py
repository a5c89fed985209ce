"""examples/quickstart.py and the README's lines of Python, on a smaller cohort."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import REPO

SMALLER = """\
extends: {smoke}
data: {{phantom: {{images: 160, image_size: 32}}, public_reference: null}}
model: {{features: null}}
"""
SMALL = ["data.phantom.images=160", "data.phantom.image_size=32", "data.public_reference=null", "model.features=null"]


@pytest.mark.integration
def test_quickstart_trains_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("quickstart", REPO / "examples" / "quickstart.py")
    assert spec and spec.loader
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    threads = torch.get_num_threads()
    try:
        run = quickstart.main(SMALL)
        assert [record["round"] for record in run.rounds] == [1, 2, 3]
        assert 0.9 < run.epsilon <= 1
        assert "classes: " in capsys.readouterr().out
        again = quickstart.main(SMALL)
    finally:
        torch.set_num_threads(threads)
    assert again.summary == run.summary


def test_python_of_the_readme_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", (REPO / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.M
    )
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    smoke = REPO / "configs" / "smoke.yaml"
    Path("configs/smoke.yaml").write_text(SMALLER.format(smoke=smoke), encoding="utf-8")
    threads, names = torch.get_num_threads(), dict[str, object]()
    try:
        exec("".join(blocks), names)
    finally:
        torch.set_num_threads(threads)
    assert isinstance(names["network"], torch.nn.Module)
    assert re.search(r"^(None|[0-9.]+) [0-9.]+$", capsys.readouterr().out, flags=re.MULTILINE)
