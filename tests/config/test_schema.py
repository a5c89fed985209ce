"""Config: every error at once, with key, value and what is allowed; inheritance and overrides."""

import copy
import itertools
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.loader import apply_override, checked, config_of, load_config, merged, read_merged
from fedhpc.config.schema import RunConfig
from fedhpc.errors import ConfigError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.rounds.resume import lasting_digest
from fedhpc.study.config import load_study
from tests.support.tiny_sweeps import load_sweep

REPO = Path(__file__).resolve().parents[2]
GOOD = {
    "name": "a",
    "data": {"shards": "x/{site}.h5", "sites": [{"name": "site1", "weight": 3}, {"name": "site2", "weight": 2}]},
    "privacy": "off",
}


def write(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads_and_is_named_after_its_file(path: Path) -> None:
    if path.stem == "study":
        assert load_study(path, []).name == path.stem
        return
    is_sweep = path.stem.startswith("sweep_")
    assert (load_sweep(path, []) if is_sweep else load_config(path)).name == path.stem


WRONG = (
    """
mode=local|mode=centralised|data.sites=[{name: site1}, {name: site2}]|privacy=off|privacy.epsilon=null
privacy.trust=sites|privacy.colluding_sites=0|privacy.colluding_sites=9|privacy.epsilon=0.001|privacy.noise_seed=1
privacy.delta=0.5|privacy.sample_rate=0.5|algorithm.name=fednova|algorithm.name=scaffold|algorithm.name=feddyn
algorithm.local_layers=norm|faults.on_death=continue|faults.absent=[site1, site2, site3]|faults.min_sites=9
faults.min_sites=2|schedule.policy=plan|schedule.policy=deadline|schedule.deadline_s=3|aggregation.rule=krum
aggregation.bounded=true|stress={case: slow, sites: [site1, site1, a], strength: 0.5}|model.backbone=null
stress={case: alie, sites: [site1, site2, site3, site4]}|rewards.altruism=1|training.average_last=0.5|model.name=null
contribution.store_updates=true|personalisation.method=head|model.feature_mean=sites|exchange.tls=false
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


def test_message_never_shows_a_value_as_python_has_it() -> None:
    """Of any two wrong settings: a key that is not set is null, or is not there."""
    base = read_merged(REPO / "configs" / "smoke.yaml", [])
    told: set[str] = set()
    for pair in itertools.combinations(WRONG, 2):
        tree = copy.deepcopy(base)
        for line in pair:
            apply_override(tree, line)
        told |= set(checked(tree)[1])
    assert len(told) > 100
    assert [line for line in told if re.search(r"\b(None|True|False|inf|NoneType)\b|Input should", line)] == []


@pytest.mark.parametrize("name", ["fedprox", "scaffold", "fednova", "feddyn"])
def test_secure_sum_has_one_message_about_the_algorithm(name: str) -> None:
    """An algorithm that it refuses is not told what else it lacks, nor which others there are."""
    lines = [
        "privacy.trust=sites",
        f"algorithm.name={name}",
        "training.optimizer=adam",
        "contribution.store_updates=true",
    ]
    for more in ([], ["exchange.density=0.1", "faults.min_sites=2"], ["privacy=off", "schedule.policy=plan"]):
        with pytest.raises(ConfigError) as error:
            load_config(REPO / "configs" / "smoke.yaml", [*more[:1], *lines, *more[1:]])
        found = [line for line in str(error.value).splitlines() if "algorithm.name" in line]
        assert len(found) == 1 and "set algorithm.name=fedavg" in found[0], found


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 10.0])
def test_usual_epsilon_is_accepted(epsilon: float) -> None:
    assert load_config(REPO / "configs" / "smoke.yaml", [f"privacy.epsilon={epsilon}"]).privacy.epsilon == epsilon


def test_fedavg_is_the_papers_set_up() -> None:
    config = load_config(REPO / "configs" / "fedavg.yaml")
    assert (config.data.phantom and config.data.phantom.images, len(config.data.sites)) == (8000, 4)
    assert (config.training.local_epochs, config.privacy.epsilon, config.privacy.unit) == (3, 1.0, "patient")
    network = load_config(REPO / "configs" / "network.yaml")
    assert network.data.sites == config.data.sites
    assert (network.training.local_epochs, network.private) == (3, False)


def test_new_key_at_its_default_leaves_runs_resumable() -> None:
    """Else no run that is going on could go on; a key that was set is another config.

    Where this fails after a key was added to the schema, add that key to YOUNG_KEYS.
    """
    config = RunConfig.model_validate({**GOOD, "privacy": {"off": True}})
    assert lasting_digest(config) == "9fbc052e4c32c9f9"
    schedules = ({"policy": "plan"}, {"policy": "plan", "round_units": 9.0})
    trees = [{**GOOD, "algorithm": {"name": "fednova"}, "schedule": one} for one in schedules]
    assert len({lasting_digest(config_of(Path("a.yaml"), tree)) for tree in trees}) == 2


@pytest.mark.parametrize(
    ("key", "tree"),
    [
        (
            "data.sites",
            {"data": {**GOOD["data"], "sites": [{"name": "global"}, {"name": "b"}]}, "privacy": {"off": True}},
        ),
        ("privacy.sample_rate", {"privacy": {"epsilon": 8.0, "sample_rate": 1e-5}}),
    ],
)
def test_run_that_could_not_be_started_now_can_be_read(tmp_path: Path, key: str, tree: dict[str, object]) -> None:
    """A rule that is younger than a finished run keeps nobody from its report and its model."""
    path = write(tmp_path / "config.yaml", {**GOOD, **tree})
    assert RunDirectory(tmp_path).read_config() is not None
    with pytest.raises(ConfigError, match=key):
        load_config(path)


def test_all_errors_at_once_with_value_and_suggestion(tmp_path: Path) -> None:
    bad = {
        **GOOD,
        "traning": {},
        "training": {"rounds": 0, "batchsize": 3},
        "privacy": {"epsilon": -1},
        "exchange": {"density": 2, "value_bits": 9, "rounding": "up"},
        "runtime": {"threads": "many"},
    }
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / "bad.yaml", bad))
    text = str(error.value)
    assert "8 problem(s)" in text
    for expected in (
        "traning: unknown key; did you mean training?",
        "training.rounds=0: must be greater than or equal to 1",
        "training.batchsize: unknown key; did you mean batch_size?",
        "privacy.epsilon=-1:",
        "exchange.density=2: must be less than or equal to 1",
        "exchange.value_bits=9: must be 32, 16, 8, 7, 6, 5, 4 or 3",
        "exchange.rounding='up': must be 'nearest' or 'stochastic'",
        "runtime.threads='many':",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": {**GOOD["data"], "sites": [{"name": "a"}, {"name": "a"}]}}, "data.sites: a named twice"),
        *(
            ({"data": {**GOOD["data"], "sites": [{"name": name}, {"name": "b"}]}}, f"data.sites: {name} is the name of")
            for name in ("aggregator", "ca", "crl", "pooled", "global")
        ),
        ({"privacy": {"epsilon": 1}, "data": {**GOOD["data"], "sites": [{"name": "a"}]}}, "no weight for a"),
        ({"privacy": {"noise_seed": 1}}, "privacy.noise_seed: set without"),
        (
            {"privacy": {"epsilon": 1}, "training": {"local_epochs": 0.5}},
            "training.local_epochs=0.5: with privacy on",
        ),
        ({"model": {"name": "frozen"}}, "model.backbone: missing"),
        ({"model": {"backbone": "efficientnet_lite0"}}, "model.backbone: only model.name=frozen"),
        (
            {"model": {"features": 5}, "data": {**GOOD["data"], "public_reference": "r.h5"}},
            "model.features: only",
        ),
        ({"model": {"name": "frozen", "backbone": "phantom", "features": 5}}, "each needs the other"),
        ({"data": {**GOOD["data"], "public_reference": "r.h5"}}, "each needs the other"),
        ({"mode": "local", "training": {"average_last": 0.5}}, "training.average_last: averages global models"),
        ({"mode": "local", "server": {"lr": 0.5}}, "aggregation, server: mode=local has no aggregator"),
        ({"mode": "local", "federation": {"aggregator_rank": "dedicated"}}, "federation.aggregator_rank: dedicated"),
    ],
)
def test_rules_over_several_keys(tmp_path: Path, change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        load_config(write(tmp_path / "c.yaml", {**GOOD, **change}))


@pytest.mark.parametrize(("section", "key"), [("server", "optimizer"), ("aggregation", "rule"), ("algorithm", "name")])
def test_unknown_choice_names_key_and_value(tmp_path: Path, section: str, key: str) -> None:
    path = write(tmp_path / "c.yaml", {**GOOD, section: {key: "none such"}})
    with pytest.raises(ConfigError, match=rf"{section}\.{key}='none such': is none of those .*; allowed: .*c.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.local_epochs=1.5", "allowed: whole number, 1 to 100, or number, above 0, below 1 (--set)"),
        ("runtime.threads=0", "allowed: whole number, at least 1, or `auto` (--set)"),
    ],
)
def test_value_of_no_kind_names_all_kinds(tmp_path: Path, override: str, told: str) -> None:
    """A value that may be of several kinds has one sentence, not one for each kind that it is not."""
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / "c.yaml", GOOD), [override])
    assert f"{override}: is not allowed; {told}" in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("harmonise=[zscore]", "harmonise.0='zscore': is a single value; it must be a mapping, such as {step: zscore}"),
        ("privacy=[off]", "is a list; it must be a mapping of keys"),
        ("aggregation=[mean]", "aggregation=['mean']: is a list; it must be a mapping, such as {rule: mean}"),
        ("server=null", "server=null: is null; it must be a mapping, such as {optimizer: sgd}"),
        ("faults=null", "faults=null: is null; it must be a mapping of keys"),
    ],
)
def test_value_in_the_place_of_a_mapping_is_named(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / "c.yaml", GOOD), [override])
    assert told in str(error.value)


@pytest.mark.parametrize("value", ["colocated", "dedicated"])
def test_renamed_key_names_the_new_one(tmp_path: Path, value: str) -> None:
    told = f"federation.aggregator='{value}': was renamed; write federation.aggregator_rank: shared .* dedicated"
    for path, sets in (
        (write(tmp_path / "old.yaml", {**GOOD, "federation": {"aggregator": value}}), []),
        (write(tmp_path / "new.yaml", GOOD), [f"federation.aggregator={value}"]),
    ):
        with pytest.raises(ConfigError, match=told):
            load_config(path, sets)


def test_extends_and_set(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {**GOOD, "training": {"rounds": 7, "lr": 0.5}})
    child = write(tmp_path / "child.yaml", {"extends": "base.yaml", "name": "child", "training": {"rounds": 3}})
    config = load_config(child, ["training.lr=1e-3", "data.phantom=null", "exchange.density=0.5"])
    assert (config.name, config.training.rounds, config.training.lr) == ("child", 3, 0.001)
    assert (config.data.phantom, config.exchange.density) == (None, 0.5)


@pytest.mark.parametrize("off", ["off", "false"])
def test_privacy_off_is_named_and_replaced(tmp_path: Path, off: str) -> None:
    base = write(tmp_path / "base.yaml", {**GOOD, "privacy": {"epsilon": 1.0, "clip_norm": 0.5}})
    without = tmp_path / "off.yaml"
    without.write_text(f"extends: base.yaml\nprivacy: {off}\n", encoding="utf-8")
    for config in (load_config(without), load_config(base, [f"privacy={off}"])):
        assert (config.privacy.off, config.private) == (True, False)
    over = write(tmp_path / "on.yaml", {"extends": "off.yaml", "privacy": {"epsilon": 2.0}})
    for config in (load_config(over), load_config(without, ["privacy.epsilon=2"])):
        assert (config.privacy.off, config.privacy.epsilon, config.privacy.clip_norm) == (False, 2.0, 1.0)


@pytest.mark.parametrize("override", ["training.rounds", "=3", "training..lr=1", "name.x=1", "training.lr=["])
def test_malformed_set_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path / "c.yaml", GOOD), [override])


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"extends": "b.yaml"})
    write(tmp_path / "b.yaml", {"extends": "a.yaml"})
    with pytest.raises(ConfigError, match="circle"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", [b"[1, 2]", b"a: [", b"\xff\xfe\x00"])
def test_not_a_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")


def test_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "there.yaml", GOOD)
    with pytest.raises(ConfigError, match=r"there\.yaml"):
        load_config(tmp_path / "missing.yaml")


def test_frozen_and_round_trip() -> None:
    config = RunConfig.model_validate({**GOOD, "privacy": {"off": True}})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.digest() != config.model_copy(update={"seed": 1}).digest()


trees = st.recursive(
    st.integers(), lambda kids: st.dictionaries(st.sampled_from("abc"), kids, max_size=3), max_leaves=8
)
maps = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(maps, maps)
def test_merge_keeps_the_upper_and_changes_nothing_else(base: dict[str, object], over: dict[str, object]) -> None:
    both = merged(base, over)
    assert merged(both, over) == both
    assert set(both) == set(base) | set(over)
    assert all(both[key] == base[key] for key in set(base) - set(over))
    assert merged(base, {}) == base


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stress={case: label_flop, sites: [site1]}", "`mimic` or `slow`. Did you mean label_flip? (--set)"),
        ("algorithm=fedpox", "is a single value; it must be a mapping, such as {name: fedprox}"),
        ("algorithm=x", "it must be a mapping, such as {name: fedavg}"),
        ("schedule.efforts={}", "schedule.efforts: name no site, and data.sites site1"),
        ("schedule.step_images=3", "remove it, or set schedule.policy=plan"),
        ("privacy.tolerated_dropouts=1", "privacy.tolerated_dropouts=1: only with privacy.trust=sites"),
        ("privacy.colluding_sites=0", "privacy.colluding_sites=0: only with privacy.trust=sites"),
        ("algorithm.name=fedpox", "fednova, feddyn. Did you mean fedprox?"),
        ("schedule.policy=plann", "must be 'wait', 'plan' or 'deadline'. Did you mean plan?"),
        ("privacy.epsilon=1e-12", "privacy.epsilon=1e-12: below 0.01 the noise hides"),
        ("aggregation.rule=null", "aggregation.rule=null: is none of those that fedhpc has; allowed: mean, "),
        ("model.build=3", "model.build=3: is a number; it must be text, in quotes"),
        ("training.batch_size=null", "training.batch_size=null: is null; it must be a whole number"),
        ("evaluation.every=1.5", "evaluation.every=1.5: is no whole number; write one"),
        ("data.sites={a: 1}", "data.sites={'a': 1}: is a mapping; it must be a list"),
        ("data.sites=[{name: a, weight: 1e30}]", "data.sites.0.weight=1e+30: is too large"),
        ("contribution.store_updates=maybe", "is a single value; it must be true or false"),
        ("schedule.efforts={site1: 0}", "schedule.efforts.site1=0: must be greater than or equal to 0.01"),
        ("faults.absent=[1]", "faults.absent.0=1: is a number; it must be text, in quotes"),
        ("privacy.sample_rate=1e-6", "privacy.sample_rate=1e-06: a step draws 0.00017 of the 170 units"),
        ("server={optimizer: fedadam, lr: -1}", "server.lr=-1: "),
        ("server={optimizer: fedadam, lrr: 1}", "server.lrr: unknown key; did you mean lr?"),
        ("aggregation={rule: krum, byzantine: 1}", "aggregation.byzantine: unknown key; allowed: rule, faulty_sites"),
        ("algorithm={name: fedprox, mu: -1}", "algorithm.mu=-1: "),
        ("harmonise=[{step: zscore}, {step: clip, low: 70}]", "harmonise.1.low=70: "),
        ("harmonise=[{step: nyul}]", "harmonise.0.landmarks: missing"),
        ("harmonise=zscore", "harmonise='zscore': is a single value; it must be a list"),
        ("harmonise=[{step: nyul, landmarks: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1]}]", "percentiles never fall"),
        ("stress={case: sign_flip, sites: [site1], strength: 3}", "stress.strength=3.0: case sign_flip has none"),
        ("stress={case: label_flip, sites: [site1], strength: 3}", "is the share of the images, at most 1"),
    ],
)
def test_wrong_section_is_told_as_it_was_written(line: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(REPO / "configs" / "smoke.yaml", [line])
    assert told in str(error.value)
