"""examples/quickstart.py, on a smaller cohort."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.conftest import REPO

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
