"""A finished model used: predictions, the exported file, the model card; and what its scores mean."""

import csv
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.shard_writer import write_shard
from fedhpc.config.schema import RunConfig
from fedhpc.models.saved import load_model
from fedhpc.models.task import Task
from fedhpc.records.calibration import exact_calibrations, sigmoid
from fedhpc.records.metrics import BINS, LATE, NEGATIVE, cell_of
from fedhpc.run.evaluation.curves import Law, Thresholds, curves_of
from fedhpc.run.evaluation.noisy_curves import noisy_calibration
from fedhpc.run.finished import export
from fedhpc.run.finished.model_card import model_card
from fedhpc.site.release import WHOLE, Weights
from fedhpc.util.normal import ndtr
from tests.conftest import Outcome
from tests.support.dicom_files import volume

RunHere = Callable[..., Outcome]
SITES = ("north", "south")


def make_shard(path: Path, site: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    images = random.integers(0, 90, (60, 1, 32, 32), dtype=np.uint8)
    images[labels == 1, :, 8:20, 8:20] += random.integers(0, 60, (30, 1, 1, 1)).astype(np.uint8)
    write_shard(
        path, site=site, classes=("healthy", "ill"), images=images, labels=labels, modality=["CT"] * 60,
        patient=[f"{site}{row}" for row in range(60)], split=np.arange(60) // 2 % 3, pixel_range=(0, 255),
        created_by="tests",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run_here: RunHere) -> Path:
    """The directory of a finished run of two sites without privacy; their shards lie beside it."""
    folder = tmp_path_factory.mktemp("finished")
    for number, site in enumerate(SITES):
        make_shard(folder / f"{site}.h5", site, number)
    sites: list[dict[str, Any]] = [{"name": site, "weight": 20} for site in SITES]
    sites[1]["harmonise"] = [{"step": "clip", "low": 1.5}, {"step": "zscore"}]
    config = {
        "name": "finished",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": sites},
        "model": {"name": "frozen", "backbone": "phantom"}, "privacy": "off", "exchange": {"tls": False},
        "training": {"rounds": 2, "local_epochs": 3, "lr": 0.1}, "runtime": {"threads": 1, "device": "cpu"},
    }  # fmt: skip
    (folder / "run.yaml").write_text(json.dumps(config))
    done = run_here(["train", folder / "run.yaml", "--run-dir", folder / "run"])
    assert done.returncode == 0, done
    return folder / "run"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predicted(run_here: RunHere, run: Path, out: Path, *inputs: str | Path) -> list[dict[str, str]]:
    done = run_here(["predict", run, "--input", *inputs, "-o", out])
    assert done.returncode == 0, done
    return table(out)


def test_predict_keeps_the_specificity_it_promises(run: Path, run_here: RunHere, tmp_path: Path) -> None:
    """On the validation patients of all sites; probabilities rise with the score and have the share of positives."""
    val, labels = [], []
    for site in SITES:
        rows = predicted(run_here, run, tmp_path / f"{site}.csv", run.parent / f"{site}.h5")
        with h5py.File(run.parent / f"{site}.h5") as file:
            is_val = file["split"][:] == 1
            val += [row for row, wanted in zip(rows, is_val, strict=True) if wanted]
            labels += file["labels"][:][is_val].tolist()
    assert stat.S_IMODE((tmp_path / "north.csv").stat().st_mode) == 0o600
    positive = np.array([int(row["positive ill"]) for row in val])
    assert positive[np.array(labels) == 0].mean() <= 0.1 and positive[np.array(labels) == 1].any()
    scores, chances = (np.array([float(row[f"{name} ill"]) for row in val]) for name in ("log_odds", "probability"))
    assert (np.diff(chances[np.argsort(scores)]) >= 0).all()
    assert abs(chances.mean() - np.mean(labels)) < 0.05


def test_pictures_and_dicom_score_as_their_shard(run: Path, run_here: RunHere, tmp_path: Path) -> None:
    """Read as the importers read them: the same scores from a folder as from the shard that was made of it."""
    random = np.random.default_rng(5)
    for number in range(6):
        (tmp_path / "in" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        grey = random.integers(0, 255, (40, 30), dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / "in" / "ab"[number % 2] / f"{number}.png")
        volume(tmp_path / "ct", number, depth=2)
    (tmp_path / "l.csv").write_text("patient,label\n" + "".join(f"id{n},{'ab'[n % 2]}\n" for n in range(6)))
    size = ["--all-test", "--size", "32"]
    assert (
        run_here(["prepare", "images", tmp_path / "in", "-o", tmp_path / "x.h5", "--sites", "1", *size]).returncode == 0
    )
    command = [
        "prepare",
        "dicom",
        tmp_path / "ct",
        "-o",
        tmp_path / "out",
        "--site",
        "y",
        "--labels",
        tmp_path / "l.csv",
    ]
    assert run_here([*command, "--secret", tmp_path / "secret", *size]).returncode == 0
    for shard, folder in ((tmp_path / "x.h5", "in"), (tmp_path / "out" / "y.h5", "ct")):
        whole = predicted(run_here, run, tmp_path / "a.csv", shard)
        found = predicted(run_here, run, tmp_path / "b.csv", tmp_path / folder)
        scores = [sorted(row["log_odds ill"] for row in rows) for rows in (whole, found)]
        assert scores[0] == scores[1] and len(scores[0]) == {"in": 6, "ct": 12}[folder]


def test_predict_wrong_input_is_one_message(run: Path, run_here: RunHere, tmp_path: Path) -> None:
    """Exit status 2, nothing written; one bad file among good ones is no exception."""
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    volume(tmp_path / "ct", 1, depth=1)
    private = torch.load(run / "model.pt", weights_only=True)
    facts = json.loads(private["facts"]) | {"personal": "north"}
    torch.save({**private, "facts": json.dumps(facts)}, tmp_path / "personal.pt")
    cases: list[tuple[list[str | Path], str]] = [
        ([run, "--input", tmp_path / "good.png", tmp_path / "bad.png"], "unreadable"),
        ([run, "--input", tmp_path / "note.txt"], "no DICOM file"),
        ([run, "--input", tmp_path / "none.png"], "no such file"),
        ([run, "--input", tmp_path / "good.png", run.parent / "south.h5"], "south.h5: is a shard (.h5), given beside "),
        ([run, "--input", run.parent / "north.h5", run.parent / "south.h5"], "given beside another shard"),
        ([run, "--input", tmp_path / "empty"], "holds no file"),
        ([run, "--input", tmp_path / "ct", "--window", "lung", "soft"], "gives images of shape (2, 32, 32)"),
        ([run, "--input", tmp_path / "ct", "--window", "lunge"], "lunge"),
        ([run, "--input", tmp_path / "ct", "--pixel-mm", "-3"], "must be above 0"),
        ([run, "--input", tmp_path / "good.png", "--personal"], "whose?"),
        ([run, "--input", tmp_path / "good.png", "--personal", "--site", "north"], "no such model"),
        ([run, "--input", tmp_path / "good.png", "--site", "nobody"], "is no site of the run"),
        ([tmp_path / "personal.pt", "--input", tmp_path / "good.png", "--site", "south"], "never leaves"),
        ([tmp_path / "personal.pt", "--input", run.parent / "south.h5", "--site", "north"], "never leaves"),
    ]
    for words, reason in cases:
        done = run_here(["predict", *words, "-o", tmp_path / "scores.csv"])
        assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr, (words, done)
        assert done.stderr.count("error:") == 1 and not (tmp_path / "scores.csv").exists()
    before = {path: path.read_bytes() for path in (tmp_path / "good.png", run / "model.pt", run.parent / "north.h5")}
    for out in (*before, tmp_path / "none" / "scores.csv"):
        for words in (["predict", run, "--input", tmp_path / "good.png", "-o", out], ["export", run, "--onnx", out]):
            done = run_here(words)
            assert done.returncode == 2 and "Give" in done.stderr and "Traceback" not in done.stderr, (words, done)
    assert all(path.read_bytes() == content for path, content in before.items())
    done = run_here(["export", tmp_path / "personal.pt", "--onnx", tmp_path / "model.onnx"])
    assert done.returncode == 2 and "never leaves" in done.stderr and not (tmp_path / "model.onnx").exists()


def test_exported_model_gives_the_same_scores(
    run: Path, run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    done = run_here(["export", run, "--onnx", tmp_path / "model.onnx"])
    assert done.returncode == 0 and "differ from PyTorch's" in done.stdout, done
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["fedhpc.classes"]) == ["healthy", "ill"] and "zscore" in facts["fedhpc.harmonise"]
    saved = load_model(run / "model.pt")
    images = torch.randn(7, 1, 32, 32)
    with torch.no_grad():
        wanted = saved.network(saved.backbone(images) if saved.backbone else images).numpy()
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], wanted, atol=1e-4)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert run_here(["export", run, "--onnx", tmp_path / "other.onnx"]).returncode == 2
    monkeypatch.setattr(export, "NEEDED", ("onnx_of_nowhere",))
    done = run_here(["export", run, "--onnx", tmp_path / "other.onnx"])
    assert done.returncode == 2 and "pip install 'fedhpc[export]'" in done.stderr
    assert not (tmp_path / "other.onnx").exists()


def test_model_card_says_what_is_public(run: Path) -> None:
    card, summary = (run / "MODEL_CARD.md").read_text(), json.loads((run / "summary.json").read_text())
    worst = min(summary["per_site"], key=lambda site: summary["per_site"][site]["auc"])
    for part in (
        "At south instead: clip (low 1.5",
        "healthy, ill",
        "| north | 20 |",
        "None: `privacy: off`",
        f"Worst site: {worst}",
        "validation splits",
    ):
        assert part in card
    assert f"| all sites | {summary['auc']:.3f} |" in card


def test_model_card_states_the_guarantee(run: Path) -> None:
    """Of a private run: unit, epsilon of the site that has spent most, delta; a known noise seed voids it, on top."""
    saved = load_model(run / "model.pt")
    config = RunConfig.model_validate(saved.config.model_dump(mode="json") | {"privacy": {"epsilon": 2.0}})
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"unit": "patient", "epsilon": 1.98, "delta": 1e-5, "evaluation_epsilon": 1.0, "auc_ci95": None}
    card = model_card(config, Task(("a & b", "c"), (1, 8, 8)), summary, calibrated=False)
    assert "each patient" in card and "epsilon 1.980, delta 1e-05" in card and "Evaluation is charged apart" in card
    assert "INSECURE" not in card and "Probabilities hold" not in card
    card = model_card(config, saved.task, summary | {"insecure_noise_seed": 7}, calibrated=True)
    assert card.index("INSECURE") < card.index("## Intended use")


def test_exact_calibration_finds_the_true_chances() -> None:
    """Scores twice too sure of themselves and shifted: the map takes that back; separable counts stay finite."""
    random = np.random.default_rng(0)
    scores = random.normal(0, 3, 200_000)
    chance = sigmoid(0.5 * scores - 1)
    positive = random.random(len(scores)) < chance
    counts = np.zeros((1, 3, BINS), np.int64)
    np.add.at(counts, (0, np.where(positive, LATE, NEGATIVE), cell_of(scores)), 1)
    (found,) = exact_calibrations(counts, 0.9)
    assert np.abs(found.probability(scores) - chance).max() < 0.02
    assert abs((scores[~positive] < found.threshold).mean() - 0.9) < 0.01
    split = np.zeros((1, 3, BINS), np.int64)
    split[0, NEGATIVE, 5], split[0, LATE, 2000] = 9, 9
    (found,) = exact_calibrations(split, 0.9)
    assert np.isfinite(found.calibrated).all()
    assert not exact_calibrations(np.zeros((1, 3, BINS), np.int64), 0.9)


def test_noisy_calibration_is_near_the_true_chances() -> None:
    """From the counts of a few bins: two normal populations whose scores are their latent positions."""
    edges = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
    bounds = np.array([-40.0, *edges, 40.0])
    negative, positive = 3000 * np.diff(ndtr(bounds)), 1000 * np.diff(ndtr(bounds - 2))
    law = Law(Weights(1, 1, "multiclass"), 1.0, 1.0)
    counts = np.stack([negative, positive * law.weights.positive])[None, None] * WHOLE
    curves = curves_of(law, np.rint(counts).astype(np.int64), 1.0)
    assert curves is not None
    found = noisy_calibration(curves[0], Thresholds.of(curves[0], edges), 0.9)
    scores: Any = np.linspace(-1.5, 3.5, 21)
    # Of normals of equal variance at distance 2: the log odds are 2 s - 2, plus those of the numbers.
    np.testing.assert_allclose(found.probability(scores), sigmoid(2 * scores - 2 - np.log(3)), atol=0.05)
    assert abs(found.threshold - 1.2816) < 0.1 and (np.diff(found.calibrated) >= 0).all()
