"""What a command imports, by the list of its modules: every `--help` and every rank waits for them."""

import subprocess
import sys
from pathlib import Path

import yaml

from fedhpc.transport import pki
from tests.mpi.test_federated import make_shard

REPO = Path(__file__).resolve().parents[1]
HEAVY = (
    "PIL",
    "cryptography",
    "h5py",
    "jinja2",
    "monai",
    "mpi4py",
    "numpy",
    "opacus",
    "psutil",
    "scipy",
    "sklearn",
    "submitit",
    "torch",
)
UNUSED_BY_A_RANK = (
    "PIL",
    "psutil",
    "monai",
    "mpmath",
    "opacus",
    "scipy.stats",
    "sklearn",
    "submitit",
    "sympy",
    "torch._decomp",
    "torch._dynamo",
    "torch._meta_registrations",
)


def loaded(program: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `program`."""
    command = [sys.executable, "-c", f"{program}\nprint('modules:', *sys.modules)", *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.rpartition("modules:")[2].split())


def test_help_imports_nothing_heavy() -> None:
    verbs = [[], ["train"], ["prepare"], ["audit"], ["sweep"], ["report"], ["bench"]]
    program = f"""
import sys
from fedhpc.cli.main import main
for verb in {verbs}:
    try:
        main([*verb, "--help"])
    except SystemExit as end:
        assert end.code == 0
"""
    assert not loaded(program) & set(HEAVY)


def test_rank_imports_no_scipy_before_it_needs_it() -> None:
    """It takes .3 s at every rank; a run without privacy on the default chain needs none of it."""
    assert not {one.partition(".")[0] for one in loaded("import sys, fedhpc.run.train")} & {"scipy", "monai", "opacus"}


def test_private_run_imports_what_it_needs(tmp_path: Path) -> None:
    """All of a run on full batches, from its config to its summary, on a network that is no MONAI one."""
    pki.init(tmp_path / "pki", ("a",))
    make_shard(tmp_path, "a", 40)
    tree = {
        "name": "one",
        "data": {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": "a", "weight": 20}]},
        "training": {"rounds": 1, "local_epochs": 1},
        "privacy": {"epsilon": 8, "sample_rate": 1},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    config = tmp_path / "one.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    program = "import sys\nfrom fedhpc.cli.main import main\nassert main(sys.argv[1:]) == 0"
    found = loaded(program, "train", str(config), "--run-dir", str(tmp_path / "run"))
    assert {"torch", "h5py"} <= found
    assert not found & set(UNUSED_BY_A_RANK)
