"""The user's own model: found, pinned by its digest, copied into the run directory, rebuilt from the copy only."""

import json
import shutil
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedhpc.api import open_run
from fedhpc.audit.target import find_target
from fedhpc.config.loader import load_config
from fedhpc.config.model_source import COPY, digest_of
from fedhpc.errors import ConfigError, InputError
from fedhpc.models.build import build_model
from fedhpc.models.saved import load_backbone, load_model, save_model
from fedhpc.models.task import Task
from tests.mpi.test_federated import make_shard

TASK = Task(("benign", "malignant"), (1, 32, 32))
SOURCE = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Size:
    width: int

class Said(nn.Module):
    def forward(self, x):
        print("in a forward pass")
        return x

def make(task, width=2):
    channels, height, _ = task.image_shape
    size = Size(width)
    print("on standard output")
    layers = nn.Conv2d(channels, size.width, height), nn.Flatten(), nn.Linear(width, len(task.classes))
    return nn.Sequential(Said(), *layers)

NOT_A_FUNCTION = 3
"""


def write_config(folder: Path, **more: Any) -> Path:
    """A run of one site on a shard of its own, and the source of its model beside it."""
    tree = {
        "name": "own",
        "model": {"build": "nets/my.py:make", "args": {"width": 3}},
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": "a", "weight": 20}]},
        "training": {"rounds": 1, "local_epochs": 1},
        "privacy": {"epsilon": 8, "sample_rate": 1},
        "evaluation": {"bootstrap": 100, "epsilon": 8},
        "exchange": {"tls": False},
        "runtime": {"threads": 1, "device": "cpu"},
        **more,
    }
    (folder / "nets").mkdir(exist_ok=True)
    (folder / "nets" / "my.py").write_text(SOURCE, encoding="utf-8")
    (folder / "own.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "own.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, run_here: Callable[..., Any]) -> Path:
    """A folder with the config of a finished run, and the run."""
    folder = tmp_path_factory.mktemp("own")
    make_shard(folder, "a", 40)
    done = run_here(["train", write_config(folder), "--run-dir", folder / "run"])
    assert done.returncode == 0, done.stderr
    return folder


def test_source_is_relative_to_the_config_that_names_it(tmp_path: Path) -> None:
    write_config(tmp_path)
    child = tmp_path / "below" / "child.yaml"
    child.parent.mkdir()
    child.write_text("extends: ../own.yaml\nname: child\n", encoding="utf-8")
    model = load_config(child).model
    assert Path(str(model.build)) == tmp_path / "nets" / "my.py:make"
    assert model.source_sha256 == digest_of(SOURCE.encode())
    assert (model.name, model.label) == (None, "my.py:make")


def test_digest_depends_on_the_source_not_on_its_place(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        write_config(folder, data={"shards": "{site}.h5", "sites": [{"name": "a", "weight": 20}]})
    digests = [load_config(folder / "own.yaml").digest() for folder in (first, second)]
    (second / "nets" / "my.py").write_text(SOURCE + "\n", encoding="utf-8")
    assert digests[0] == digests[1] != load_config(second / "own.yaml").digest()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"build": "gone.py:make"}, r"model\.build=.*gone\.py:make: no such file"),
        ({"build": "nets/my.py"}, r"model\.build='nets/my\.py'"),
        ({"build": "no_such_package.models:make"}, r"model\.build=.*no module no_such_package\.models"),
        ({"build": "nets/my.py:make", "source_sha256": "0" * 64}, r"model\.source_sha256=0+: .*is another file now"),
        ({"build": "nets/my.py:make", "name": "resnet18"}, r"model\.name=resnet18, model\.build=.*exclude each other"),
        ({"build": "nets/my.py:make", "monai": "DenseNet121"}, r"model\.monai=DenseNet121: exclude each other"),
        ({"name": None}, r"model\.name=null: no network is named"),
        ({"args": {"width": 3}}, r"model\.args: belong to model\.build or model\.monai"),
        ({"source_sha256": "0" * 64}, r"model\.source_sha256: belongs to model\.build"),
    ],
)
def test_bad_model_section_is_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path, model=model))


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("made", {}, "has no function made. Name one that it has: Said, Size, make"),
        ("NOT_A_FUNCTION", {}, "has no function NOT_A_FUNCTION"),
        ("make", {"depth": 3}, r"failed when called with \(task, depth=3\): TypeError: .*'depth'"),
        ("make", {"width": 0}, "ZeroDivisionError|must be|zero"),
    ],
)
def test_function_that_cannot_be_used_is_refused(
    tmp_path: Path, function: str, args: dict[str, Any], message: str
) -> None:
    path = write_config(tmp_path, model={"build": f"nets/my.py:{function}", "args": args})
    with pytest.raises(InputError, match=message):
        build_model(load_config(path), TASK)


@pytest.mark.parametrize("source", ["def make(task:\n    pass", "import no_such_package, make", "1 / 0  # make"])
def test_source_that_cannot_be_loaded_is_refused(tmp_path: Path, source: str) -> None:
    path = write_config(tmp_path)
    (tmp_path / "nets" / "my.py").write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=r"my\.py: cannot be loaded: \w+: .* \(line 1\)\. Correct it there"):
        build_model(load_config(path), TASK)


@pytest.mark.parametrize("source", ["def make(task:\n    pass", "return 1", "def other(task):\n    1 / 0", "\0"])
def test_text_that_cannot_be_a_source_is_refused_with_the_config(tmp_path: Path, source: str) -> None:
    """A fault that shows without execution is refused before anything is made."""
    path = write_config(tmp_path)
    (tmp_path / "nets" / "my.py").write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.build=.*my\.py.*: (cannot be loaded: |.* has no function make\.)"):
        load_config(path)


@pytest.mark.parametrize("source", ["from a import *", "for n in (1, 2):\n    globals()[f'm{n}'] = n", "import make"])
def test_text_that_may_have_the_function_is_not_refused(tmp_path: Path, source: str) -> None:
    path = write_config(tmp_path)
    (tmp_path / "nets" / "my.py").write_text(source, encoding="utf-8")
    assert load_config(path).model.build


def test_function_that_fails_is_found_before_the_cohort_is_made(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    phantom = {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": "site1", "weight": 20}], "phantom": {}}
    path = write_config(tmp_path, data=phantom, model={"build": "nets/my.py:make", "args": {"depth": 3}})
    done = run_here(["train", path, "--run-dir", tmp_path / "run"])
    assert done.returncode == 2 and "failed when called with (task, depth=3)" in done.stderr, done
    assert "making the built-in cohort" not in done.stdout + done.stderr and not list(tmp_path.glob("*.h5"))


def test_source_changed_after_the_config_was_read_is_refused(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    (tmp_path / "nets" / "my.py").write_text(SOURCE + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="It was changed since"):
        build_model(config, TASK)


def test_installed_module_is_pinned_with_its_package(tmp_path: Path) -> None:
    model = load_config(write_config(tmp_path, model={"build": "fedhpc.models.densenet:DenseNet"})).model
    assert (model.source_module, model.source_version) == ("fedhpc.models.densenet", f"fedhpc {version()}")
    assert model.source_sha256 == digest_of(Path("fedhpc/models/densenet.py").read_bytes())


def version() -> str:
    from importlib import metadata

    return metadata.version("fedhpc")


def test_module_of_a_package_is_rebuilt_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "ownnets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('looked up, not imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    (package / "my.py").write_text(SOURCE, encoding="utf-8")
    config = load_config(write_config(tmp_path, model={"build": "ownnets.my:make"}))
    assert config.model.source_module == "ownnets.my"
    assert build_model(config, TASK)
    shutil.rmtree(package)
    with pytest.raises(InputError, match=r"no module ownnets\.my"):
        build_model(config, TASK)


def test_run_directory_rebuilds_the_model_from_its_copy(finished: Path, run_here: Callable[..., Any]) -> None:
    run = finished / "run"
    assert (run / COPY).read_text(encoding="utf-8") == SOURCE
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["build"] == f"{COPY}:make"
    moved = finished / "moved"
    shutil.copytree(run, moved)
    source = finished / "nets" / "my.py"
    source.unlink()
    try:
        network = open_run(moved).model().network
        assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 2)
        found = run_here(["evaluate", moved, "--shard", finished / "a.h5", "--json"])
        assert found.returncode == 0, found.stderr
        assert found.stdout.startswith("{")
    finally:
        source.write_text(SOURCE, encoding="utf-8")


@pytest.mark.parametrize("other", ["state/notes.py:make", "../notes.py:make", "os:system", f"./{COPY}:make"])
def test_source_beside_the_copy_is_not_executed(finished: Path, tmp_path: Path, other: str) -> None:
    """The pages say to read the copy before `audit`, which executed what config.yaml named."""
    shutil.copytree(finished / "run", tmp_path / "run")
    for folder in ("run/state", "."):
        (tmp_path / folder / "notes.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    tree["model"] |= {"build": other, "source_sha256": None, "source_module": None, "source_version": None}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(InputError, match="the copy of its source"):
        find_target(tmp_path / "run", [])


def test_changed_copy_is_not_executed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / COPY).write_text("raise SystemExit('executed')", encoding="utf-8")
    with pytest.raises(InputError, match="the source has SHA-256"):
        load_model(tmp_path / "run" / "model.pt")


def test_model_file_alone_executes_nothing(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "run" / "model.pt", tmp_path)
    with pytest.raises(InputError, match=f"{COPY}, the copy of its source, is not there"):
        load_model(tmp_path / "model.pt")


def test_model_file_without_a_digest_executes_nothing(finished: Path, tmp_path: Path) -> None:
    saved = torch.load(finished / "run" / "model.pt", weights_only=True)
    facts = json.loads(saved["facts"])
    facts["config"]["model"]["source_sha256"] = None
    torch.save({**saved, "facts": json.dumps(facts)}, tmp_path / "model.pt")
    (tmp_path / COPY).write_text("raise SystemExit('executed')", encoding="utf-8")
    with pytest.raises(InputError, match="does not say which source"):
        load_model(tmp_path / "model.pt")


def test_resume_with_a_changed_source_is_refused(finished: Path, run_here: Callable[..., Any]) -> None:
    source = finished / "nets" / "my.py"
    source.write_text(SOURCE.replace("width=2", "width=4"), encoding="utf-8")
    try:
        again = run_here(["train", finished / "own.yaml", "--run-dir", finished / "run"])
    finally:
        source.write_text(SOURCE, encoding="utf-8")
    assert again.returncode == 2
    assert "holds a run of another config; different: model.source_sha256" in " ".join(again.stderr.split())


def test_start_from_another_source_executes_nothing(
    finished: Path, tmp_path: Path, run_here: Callable[..., Any]
) -> None:
    make_shard(tmp_path, "a", 40)
    path = write_config(tmp_path)
    (tmp_path / "nets" / "my.py").write_text(SOURCE + "\n", encoding="utf-8")
    started = run_here(["train", path, "--run-dir", tmp_path / "run", "--init-from", finished / "run"])
    assert started.returncode == 2
    assert "model.source_sha256 is" in started.stderr


def test_own_model_is_no_backbone(finished: Path) -> None:
    with pytest.raises(InputError, match="whose last layer is not known"):
        load_backbone(str(finished / "run" / "model.pt"))


def test_model_file_calls_no_address_in_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HoVerNet of MONAI takes `pretrained_url`: whoever scored images with such a file told its maker."""
    from monai.networks import nets

    asked: list[str] = []

    class Calling(torch.nn.Linear):
        def __init__(self, in_channels: int, num_classes: int, address: str) -> None:
            super().__init__(in_channels, num_classes)
            place = ("127.0.0.1", int(address[-5:]))
            for call in (
                lambda: urllib.request.urlopen(address, timeout=1),
                lambda: socket.create_connection(place, 1),
            ):
                try:
                    call()
                except PermissionError:
                    continue
                except OSError:
                    pass
                asked.append(address)

    monkeypatch.setattr(nets, "Calling", Calling, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]:05}"
        model = {"monai": "Calling", "args": {"address": address}}
        config = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]}, "model": model}
        facts = {"config": config, "classes": ["a", "b"], "image_shape": [1, 8, 8], "f1_thresholds": [1]}
        save_model(tmp_path / "model.pt", torch.nn.Linear(1, 2), facts)
        load_model(tmp_path / "model.pt")
        assert asked == []
        # What a run may have had: its weights are in the file, so that nothing is asked of an address.
        monkeypatch.setattr(nets, "Calling", torch.nn.Linear)
        args = {"pretrained": True, "pretrained_url": address, "in_features": 1, "out_features": 2}
        config["model"] = {"monai": "Calling", "args": args}
        save_model(tmp_path / "model.pt", torch.nn.Linear(1, 2), facts)
        assert load_model(tmp_path / "model.pt").config.model.args["pretrained_url"] == address
        # Control: elsewhere the same call arrives.
        socket.create_connection(server.getsockname(), 5).close()
        server.settimeout(5)
        server.accept()[0].close()
