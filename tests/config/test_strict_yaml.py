"""What a config file may not say: everything that two readers of YAML could take for different things."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.loader import load_config
from fedhpc.config.strict_yaml import MOST_BYTES, MOST_DEPTH, MOST_VALUES, dump_yaml, parse_yaml, read_yaml
from fedhpc.errors import ConfigError

BASE = "name: x\nprivacy: {epsilon: 1.0}\ndata: {shards: '{site}.h5', sites: [{name: a, weight: 9}]}\n"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("privacy: {clip_norm: 0.5}", "line 4: privacy: is there twice, in line 2 too"),
        ("training: {lr: 1, lr: 2}", "line 4: training.lr: is there twice, in line 4 too"),
        ("'training': {}\ntraining: {}", "line 5: training: is there twice"),
        ("seed: 010", "line 4: seed=010: has a leading zero"),
        ("seed: 0x10", "line 4: seed=0x10: is not decimal"),
        ("seed: 0o10", "line 4: seed=0o10: is not decimal"),
        ("seed: 0b10", "line 4: seed=0b10: is not decimal"),
        ("training: {rounds: 1:30}", "line 4: training.rounds=1:30: is a number of base 60"),
        ("training: {rounds: 1_0}", "line 4: training.rounds=1_0: has underscores"),
        ("training: {lr: .inf}", "line 4: training.lr=.inf: is not a finite number"),
        ("training: {lr: .NaN}", "line 4: training.lr=.NaN: is not a finite number"),
        ("training: {lr: 1e999}", "line 4: training.lr=1e999: is too large"),
        ("training:\n  lr:", "line 5: training.lr: is empty. Write null"),
        ("training:", "line 4: training: is empty"),
        ("training: {rounds: !!int on}", "line 4: training.rounds=on: the tag"),
        ("training: !!python/object:os.system {}", "line 4: training: the tag"),
        ("<<: {seed: 1}", "line 4: <<: merge keys are not read here"),
        ("7: 1", "line 4: key 7: is not a word"),
        ("model: &m {name: *m}", "line 4: model.name: is an alias inside"),
        ("training: [", "line 5: is not valid YAML"),
        ("---\nseed: 1", "line 4: is not valid YAML"),
        ("# \xff", "is not UTF-8"),
    ],
)
def test_ambiguous_yaml_is_refused_with_its_line(tmp_path: Path, more: str, told: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes((BASE + more + "\n").encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert told in str(error.value)
    assert str(error.value).startswith(f"{path}, line ")


@pytest.mark.parametrize("word", ["on", "yes", "true", "y", "'1'", "text", "'inf'", "'nan'"])
@pytest.mark.parametrize("key", ["privacy.clip_norm", "training.rounds"])
def test_number_that_is_no_number_is_refused(tmp_path: Path, key: str, word: str) -> None:
    section, name = key.split(".")
    path = tmp_path / "c.yaml"
    path.write_text(f"{BASE.replace('privacy: {', 'privacy: {' if section == 'training' else 'x: {')}"
                    f"{section}: {{{name}: {word}{', epsilon: 1' if section == 'privacy' else ''}}}\n")  # fmt: skip
    for overrides, place in (([], "c.yaml, line 4"), ([f"{key}={word}"], "--set")):
        with pytest.raises(ConfigError) as error:
            load_config(path, overrides)
        (line,) = [line for line in str(error.value).splitlines() if key in line]
        assert "write a number" in line
        assert place in line


@pytest.mark.parametrize("value", ["", " ", "# gone"])
def test_empty_override_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE)
    with pytest.raises(ConfigError, match="null"):
        load_config(path, [f"privacy.epsilon={value}"])


def test_privacy_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE.replace("epsilon: 1.0", "clip_norm: 1.0"))
    with pytest.raises(ConfigError, match=r"neither an epsilon nor `off` is set.*privacy=off.*\(c\.yaml, line 2\)"):
        load_config(path)
    with pytest.raises(ConfigError, match="neither an epsilon"):
        load_config(path, ["privacy.epsilon=null"])
    with pytest.raises(ConfigError, match="say two things"):
        load_config(path, ["privacy.off=true", "privacy.epsilon=1"])
    assert load_config(path, ["privacy.off=true"]).privacy.clip_norm == 1.0


def test_site_without_keys_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE.replace("[{name: a, weight: 9}]", "[site1]"))
    with pytest.raises(ConfigError, match=r"must be a mapping of keys, such as \{name: site1, weight: 100\}") as caught:
        load_config(path)
    assert "tuple" not in str(caught.value) and "1 problem(s)" in str(caught.value)
    path.write_text(BASE.replace("[{name: a, weight: 9}]", "[]"))
    with pytest.raises(ConfigError, match=r"data\.sites=\[\]: is empty; it must have at least 1 item"):
        load_config(path)


def test_override_with_a_path_is_placed_at_set(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE)
    with pytest.raises(ConfigError, match=r"data\.sites\.0\.name='\.\./evil': .* \(--set\)"):
        load_config(path, ["data.sites=[{name: ../evil, weight: 3}]"])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n" for i in range(7)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "x" * (MOST_BYTES + 1),
        "a: " + "x" * 100_000 + ": 1: 2",
        "? " * 3000,
    ],
    ids=["aliases", "brackets", "maps", "dashes", "size", "scalar", "keys"],
)
def test_hostile_file_gives_one_short_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_many_problems_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "".join(f"key{number}: {'x' * 500}\n" for number in range(1000)))
    with pytest.raises(ConfigError, match="and 950 more") as error:
        load_config(path)
    assert len(str(error.value)) < 20_000


def test_bounds_admit_a_large_config() -> None:
    assert len(parse_yaml("[" + "1, " * (MOST_VALUES - 2) + "1]", "x")) == MOST_VALUES - 1
    with pytest.raises(ConfigError, match=f"more than {MOST_VALUES} values"):
        parse_yaml("[" + "1, " * MOST_VALUES + "1]", "x")
    parse_yaml("[" * MOST_DEPTH + "]" * MOST_DEPTH, "x")
    with pytest.raises(ConfigError, match="nested deeper"):
        parse_yaml("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "x")


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False, allow_infinity=False),
    lambda kids: st.lists(kids, max_size=3) | st.dictionaries(st.text(max_size=8), kids, max_size=3),
    max_leaves=10,
)


@given(trees)
def test_what_is_dumped_is_read_back(tree: object) -> None:
    assert parse_yaml(dump_yaml({"tree": tree}), "x") == {"tree": tree}


def test_directory_for_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


def test_command_line_says_one_line_and_2(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("[" * 5000)
    command = [sys.executable, "run.py", "privacy", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
