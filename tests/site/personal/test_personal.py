"""The personal model of a hospital: its mathematics, what it may do to others (nothing), and that it stays at home."""

import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from fedhpc.errors import InputError
from fedhpc.models.loss import loss
from fedhpc.models.saved import load_model
from fedhpc.site.personal.last_layer import HeadInputs, last_layer, matrix_of, set_matrix
from fedhpc.site.personal.personal_head import PersonalHead, fit_correction, fit_head
from fedhpc.site.personal.personalise import keep_earlier
from tests.mpi.test_federated import make_shard

SITES = ("a", "b")


def problem(n: int, seed: int, tilt: float = 0.0) -> HeadInputs:
    """Two classes along the first direction; a `tilt` turns it towards the second."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    inputs = rng.normal(size=(n, 3))
    inputs[:, 0] += 2 * labels * math.cos(tilt)
    inputs[:, 1] += 2 * labels * math.sin(tilt)
    patient = np.arange(n).astype("S8")
    return HeadInputs(torch.from_numpy(inputs), torch.from_numpy(labels), patient)


SHARED = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def test_head_is_the_minimum_of_its_objective() -> None:
    """The gradient there is zero: that of a convex function, so no other point is lower."""
    data = problem(200, 0, tilt=1.0)
    fit = fit_correction(SHARED, data, 0.01)
    scale, correction = fit.scale.requires_grad_(), fit.correction.requires_grad_()
    value = loss(data.inputs @ (scale * SHARED + correction).T, data.labels) + 0.005 * correction.square().sum()
    for gradient in torch.autograd.grad(value, (scale, correction)):
        assert gradient.abs().max() < 2e-5


def test_strong_ridge_only_rescales_the_global_head() -> None:
    data = problem(200, 0, tilt=1.0)
    strong, none = (fit_correction(SHARED, data, strength) for strength in (1e6, math.inf))
    assert strong.correction.abs().max() < 1e-6 and not none.correction.any()
    assert strong.scale == pytest.approx(float(none.scale), abs=0.01)


STRENGTHS = (1e-4, 1e-2, 1.0)


def chosen(shared: torch.Tensor, train: HeadInputs, val: HeadInputs) -> PersonalHead:
    return fit_head(shared, train, val, STRENGTHS, np.random.default_rng(0))


def test_hospital_like_the_others_keeps_the_global_head() -> None:
    """Of a few patients of the same kind no correction is surely better: it is that head itself, bit for bit."""
    best = fit_correction(torch.zeros_like(SHARED), problem(20_000, 5), 1e-6).matrix(SHARED)
    head = chosen(best, problem(30, 1), problem(10, 2))
    assert math.isinf(head.chosen.setting) and torch.equal(head.matrix, best)


def test_hospital_unlike_the_others_leaves_the_global_head() -> None:
    head = chosen(SHARED, problem(400, 3, tilt=1.5), problem(100, 4, tilt=1.5))
    own = problem(500, 6, tilt=1.5)
    assert loss(own.inputs @ head.matrix.T, own.labels) < 0.7 * loss(own.inputs @ SHARED.T, own.labels)
    assert head.chosen.val_loss == min(one.val_loss for one in head.candidates)


def test_folds_keep_a_patients_images_together() -> None:
    """Images that say their patient's label alone help nobody who was not in the fit: no correction is chosen."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 4)
    code = np.eye(60)[patients]
    labels = torch.from_numpy(rng.integers(0, 2, 60)[patients])
    data = HeadInputs(torch.from_numpy(code), labels, patients.astype("S8"))
    head = chosen(torch.zeros((2, 60), dtype=torch.float64), data, data.rows(np.zeros(240, bool)))
    assert math.isinf(head.chosen.setting)


def test_layer_is_set_as_it_is_read() -> None:
    layer = nn.Linear(4, 3)
    matrix = torch.randn(3, 5, dtype=torch.float64)
    set_matrix(layer, matrix)
    torch.testing.assert_close(matrix_of(layer), matrix, rtol=1e-6, atol=1e-6)


def test_last_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(InputError) as error:
        last_layer(nn.Sequential(nn.Linear(4, 3), nn.GroupNorm(1, 3)))
    assert error.value.code == "personalisation"


def config(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "personal",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": site, "weight": 20} for site in SITES]},
        "training": {"rounds": 2, "local_epochs": 1, "batch_size": 16, "lr": 0.05},
        "privacy": {"epsilon": 8.0, "sample_rate": 1.0, "noise_seed": 1},
        "exchange": {"tls": False},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
        **more,
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("personal")
    for site in SITES:
        make_shard(folder, site, 80)
    (folder / "c.yaml").write_text(yaml.safe_dump(config(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def plain(cohort: Path, run_here: Callable[..., Any]) -> Path:
    done = run_here(["train", cohort / "c.yaml", "--run-dir", cohort / "plain"])
    assert done.returncode == 0, done.stderr
    return cohort / "plain"


@pytest.fixture(scope="module", params=["head", "fine_tune"])
def personal(cohort: Path, run_here: Callable[..., Any], request: pytest.FixtureRequest) -> Path:
    run = cohort / request.param
    epochs = ["--set", "personalisation.epochs=2"] if request.param == "fine_tune" else []
    method = ["--set", f"personalisation.method={request.param}", *epochs]
    done = run_here(["train", cohort / "c.yaml", "--run-dir", run, *method])
    assert done.returncode == 0, done.stderr
    return run


def sent(run: Path) -> list[tuple[Any, ...]]:
    """All that left, message by message; of updates the very bytes. Others name the run and its ledgers' heads."""
    paths = sorted([run / "egress.jsonl", *run.glob("sites/*/egress.jsonl")])
    lines = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [(one["kind"], one["round"], one["sha256"] if one["kind"] == "update" else "") for one in lines]


def test_personalisation_changes_nothing_that_leaves(plain: Path, personal: Path) -> None:
    """The released model, the records, what was spent: the same bits and numbers with it and without it."""
    ours, theirs = (load_model(run / "model.pt").network.state_dict() for run in (personal, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((run / "summary.json").read_text()) for run in (personal, plain)]
    for key in ("auc", "epsilon", "evaluation_epsilon", "per_site", "bytes_up_per_round"):
        assert results[0][key] == results[1][key]
    assert sent(personal) == sent(plain) != []
    for site in SITES:
        ledgers = [(run / "sites" / site / "ledger.jsonl").read_text().count("\n") for run in (personal, plain)]
        assert ledgers[0] == ledgers[1]


def test_personal_files_are_the_owners_only(personal: Path) -> None:
    for site in SITES:
        for name in ("personal.pt", "personal.json"):
            assert stat.S_IMODE((personal / "sites" / site / name).stat().st_mode) == 0o600
    public = [path for path in personal.rglob("*") if path.suffix in (".json", ".jsonl", ".txt", ".yaml")]
    assert [path.name for path in public if "val_loss" in path.read_text(encoding="utf-8")] == ["personal.json"] * 2


def test_record_has_the_gain_over_the_final_model(personal: Path) -> None:
    record = json.loads((personal / "sites" / "a" / "personal.json").read_text())
    assert record["method"] == personal.name
    assert record["gain"]["auc"] == pytest.approx(record["personal"]["auc"] - record["final"]["auc"])
    assert record["chosen"] in record["candidates"]
    low, high = record["personal"]["auc_ci95"]
    assert low <= record["personal"]["auc"] <= high


def test_evaluate_gives_a_hospital_its_personal_model(personal: Path, run_here: Callable[..., Any]) -> None:
    done = run_here(["evaluate", personal, "--site", "a", "--personal", "--json"])
    assert done.returncode == 0, done.stderr
    record = json.loads((personal / "sites" / "a" / "personal.json").read_text())
    assert json.loads(done.stdout)["auc"] == pytest.approx(record["personal"]["auc"], abs=1e-3)
    for wrong in (["--personal", "--site", "c"], ["--personal"], []):
        assert run_here(["evaluate", personal, *wrong]).returncode == 2


def test_run_from_a_personal_model_is_refused(cohort: Path, personal: Path, run_here: Callable[..., Any]) -> None:
    """It would carry what was learned without noise to all others; also as a backbone, and without privacy."""
    path = personal / "sites" / "a" / "personal.pt"
    start = ["train", cohort / "c.yaml", "--run-dir", cohort / "refused", "--init-from", path]
    backbone = [*start[:4], "--set", "model.name=frozen", "--set", f"model.backbone={path}"]
    for command in (start, backbone, [*start, "--set", "privacy=off"]):
        done = run_here(command)
        assert done.returncode == 2 and "[privacy.personal]" in done.stderr


def test_baselines_have_nothing_to_personalise(cohort: Path, run_here: Callable[..., Any]) -> None:
    words = ["--set", "mode=local", "--set", "personalisation.method=head"]
    done = run_here(["train", cohort / "c.yaml", "--run-dir", cohort / "local", *words])
    assert done.returncode == 2 and "personalisation.method=head" in done.stderr


def test_continued_run_keeps_earlier_models(tmp_path: Path) -> None:
    for rounds in (10, 10, 12, 20):
        keep_earlier(tmp_path, rounds)
        (tmp_path / "personal.pt").write_text(f"{rounds}")
        (tmp_path / "personal.json").write_text(json.dumps({"rounds": rounds}))
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {
        f"personal{mark}.{kind}": text
        for mark, rounds in (("-0010", 10), ("-0012", 12), ("", 20))
        for kind, text in (("pt", f"{rounds}"), ("json", f'{{"rounds": {rounds}}}'))
    }
