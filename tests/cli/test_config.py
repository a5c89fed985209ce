"""`run.py config show|reference`: every value with its origin; what is printed is a config again."""

import json
from pathlib import Path

import pytest

from fedhpc.cli.main import main
from fedhpc.config.loader import load_config
from fedhpc.config.origins import leaves

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASE = "name: base\nprivacy: {epsilon: 2.0}\ndata:\n  shards: x/{site}.h5\n  sites:\n    - {name: a, weight: 3}\n"
CHILD = "extends: base.yaml\nname: child\nprivacy: off\n\ntraining: {lr: 0.5}\n"


@pytest.fixture
def child(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    (tmp_path / "child.yaml").write_text(CHILD, encoding="utf-8")
    return tmp_path / "child.yaml"


def test_origin_of_every_value(child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(child), "--set", "training.rounds=5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = load_config(child, ["training.rounds=5"])
    assert (found["config"], found["digest"]) == (config.model_dump(mode="json"), config.digest())
    expected = {
        "name": "child.yaml, line 2",
        "privacy.off": "child.yaml, line 3",
        "privacy.epsilon": "default",
        "training.lr": "child.yaml, line 5",
        "training.rounds": "--set",
        "training.momentum": "default",
        "data.shards": "base.yaml, line 4 (extends)",
        "data.sites[0].weight": "base.yaml, line 6 (extends)",
        "data.sites[0].node": "default",
        "data.phantom": "default",
    }
    assert {key: found["from"][key] for key in expected} == expected


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!s]*.yaml")), ids=lambda path: path.stem)
def test_shown_config_is_the_same_config(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(path)]) == 0
    text = capsys.readouterr().out
    (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "shown.yaml") == load_config(path)
    assert [line for line in text.splitlines() if len(line) > 80 and "#" in line] == []
    assert text.count("# ") == len(list(leaves(load_config(path).model_dump(mode="json"))))


ODD_ARGS = (
    'model.args={text: "a: b # c\\nd", none: null, empty: [], "on": "off", rows: [[1, 2], [], [{a: {}}]], big: 1.0e+30}'
)


def test_odd_values_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, source = tmp_path / "config.yaml", tmp_path / "my_models.py"
    path.write_text(BASE, encoding="utf-8")
    source.write_text("def make(**args): ...\n", encoding="utf-8")
    words = ["config", "show", str(path), "--set", f"model.build={source}:make", "--set", ODD_ARGS]
    assert main(words) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    shown = load_config(tmp_path / "shown.yaml")
    rows = [[1, 2], [], [{"a": {}}]]
    assert shown.model.args == dict(text="a: b # c\nd", none=None, empty=[], on="off", rows=rows, big=1e30)
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["config"], found["digest"]) == (shown.model_dump(mode="json"), shown.digest())
    assert {found["from"][f"model.args.{key}"] for key in ("text", "empty", "rows[0][1]", "rows[2][0].a")} == {"--set"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", str(CONFIGS / "sweep_epsilon_density.yaml")], "is a sweep"),
        (["show", str(CONFIGS / "smoke.yaml"), "--set", "training.rounds=0"], "training.rounds=0"),
        (["show", str(CONFIGS / "smoke.yaml"), "--set", "model.build=my_models.py"], "names no function"),
        (["reference", "traning"], "KEY=traning: no config has it"),
    ],
)
def test_bad_input_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *words]) == 2
    assert told in capsys.readouterr().err


def test_reference_of_one_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "reference", "--json", "slurm.time_min"]) == 0
    (key,) = json.loads(capsys.readouterr().out)["keys"]
    assert (key["key"], key["default"]) == ("slurm.time_min", "120")
    assert main(["config", "reference", "slurm"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("## slurm\n") and "**`slurm.nodes`**" in out and "exchange" not in out
