"""What is wrong with a site's data is known to that site only: the others learn site, kind and number."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from fedhpc.transport import pki
from tests.mpi.leak_cases import SECRET
from tests.mpi.test_federated import make_shard

pytestmark = pytest.mark.mpi
LABEL = 7_654_321
SITES = ("site1", "site2")
Damage = Callable[[h5py.File], None]


def rename_dataset(file: h5py.File) -> None:
    file[SECRET] = [1]


def attribute_value(file: h5py.File) -> None:
    file.attrs["classes"] = SECRET


def pseudonym_in_two_splits(file: h5py.File) -> None:
    file["patient"][:] = np.full(len(file["patient"]), SECRET.encode(), "S16")


def external_link(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = h5py.ExternalLink(f"{SECRET}.h5", "labels")


CASES: dict[str, tuple[Damage, str]] = {
    "dataset": (rename_dataset, r"layout \(1\)"),
    "attribute-name": (lambda file: file.attrs.__setitem__(SECRET, 1), r"attributes \(1\)"),
    "attribute-value": (attribute_value, r"attributes \(1\)"),
    "site-name": (lambda file: file.attrs.__setitem__("site", SECRET), r"wrong site \(1\)"),
    "link": (external_link, r"layout \(1\)"),
    "label": (lambda file: file["labels"].__setitem__(3, LABEL), r"values of /labels \(1\)"),
    "modality": (lambda file: file["modality"].__setitem__(3, SECRET[:2].encode()), r"values of /modality \(1\)"),
    "patient": (pseudonym_in_two_splits, r"patient in two splits \(1\)"),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals, the second with a broken shard in each case's folder."""
    folder = tmp_path_factory.mktemp("leaks")
    pki.init(folder / "pki", SITES)
    for site in SITES:
        make_shard(folder, site, 20)
    for case, (damage, _) in CASES.items():
        shards = folder / case / "shards"
        shards.mkdir(parents=True)
        for site in SITES:
            shutil.copy(folder / f"{site}.h5", shards)
        with h5py.File(shards / "site2.h5", "r+") as file:
            damage(file)
    tree = {
        "name": "leaks",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": name} for name in SITES]},
        "privacy": {"off": True},
        "training": {"rounds": 1, "local_epochs": 1},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "leaks.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def assert_kept(folder: Path, said: str) -> None:
    """Neither on the console nor in what any rank sent."""
    sent = b"".join(path.read_bytes() for path in folder.glob("payloads-*"))
    assert len(sent) > 1000
    for text in (SECRET, str(LABEL)):
        assert text not in said
        assert text.encode() not in sent


def test_broken_shards_tell_their_kind_only(cohort: Path, mpirun: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = mpirun(2, ["-m", "tests.mpi.leak_cases", cohort, cohort / "leaks.yaml", *CASES], timeout=240)
    assert status == 2, err
    assert err.count("error: shard of site 'site2'") == err.count("[shard]") == len(CASES)
    for case, (_, kind) in CASES.items():
        assert re.search(kind, err), f"{case}: {err}"
        log = cohort / case / "sites" / "site2" / "log.txt"
        secret = {"label": str(LABEL), "modality": SECRET[:2]}.get(case, SECRET)
        assert secret in log.read_text(encoding="utf-8") or case == "link", case
        assert log.stat().st_mode & 0o777 == 0o600
        assert not (cohort / case / "config.yaml").exists(), "nothing has begun"
    assert_kept(cohort, out + err)


def test_unforeseen_exception_tells_its_type_only(cohort: Path, mpirun: Callable[..., tuple[int, str, str]]) -> None:
    case = f"raise={SECRET}"
    status, out, err = mpirun(2, ["-m", "tests.mpi.leak_cases", cohort, cohort / "leaks.yaml", case])
    assert status == 1
    assert "site site2, round 1: training failed: ValueError at tests/mpi/leak_cases.py:" in err
    assert out.count("site ledger: $FEDHPC_SITE_LEDGER") == len(SITES), "each forecast names the variable"
    log = (cohort / "raise" / "sites" / "site2" / "log.txt").read_text(encoding="utf-8")
    assert f"could not convert string to float: {SECRET}" in log
    assert re.search(f"RuntimeWarning at .*leak_cases.py:.*overflow encountered in {SECRET}", log)
    assert_kept(cohort, out + err)
