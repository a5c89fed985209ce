"""`run.py pki`: each kind on real certificates."""

from pathlib import Path

import pytest
import yaml

from fedhpc.cli.main import main
from fedhpc.transport.tls import AGGREGATOR_NAME

SITES = ("site1", "st_mary-2")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    data = {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": name} for name in SITES]}
    tree = {"name": "x", "data": data, "privacy": "off"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tmp_path / "c.yaml"


def test_pki_kinds_change_the_folder(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config.parent / "pki"
    assert main(["pki", "init", str(config), "--days", "10"]) == 0
    first = (folder / "site1.pem").read_bytes()
    assert main(["pki", "issue", str(config), "site1"]) == 0
    assert (folder / "site1.pem").read_bytes() != first
    assert main(["pki", "revoke", str(config), "st_mary-2"]) == 0
    capsys.readouterr()
    assert main(["pki", "show", str(config)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["site1"].endswith("364 days left")
    assert rows["st_mary-2"].endswith("revoked")
    assert rows[AGGREGATOR_NAME].endswith("9 days left")
    assert main(["pki", "issue", str(config), "site9"]) == 2
    assert main(["pki", "issue", str(config), "site1", "--days", "0"]) == 2
    assert "site9: no site of" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [["init"], ["issue", "site1"], ["revoke", "site1"]])
def test_pki_signs_in_no_folder_of_a_rank(config: Path, kind: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    here = config.parent
    own = f"exchange.pki={here}/pki-{{site}}"
    command = [kind[0], str(config), *kind[1:], "--set", own]
    assert main(["pki", *command]) == 2
    assert own in capsys.readouterr().err
    assert not list(here.glob("pki-*"))
    assert main(["pki", "init", str(config), "--set", own, "-o", f"{here}/ca"]) == 0
    assert (here / "ca" / "ca.key").exists()


def test_pki_folder_that_cannot_be_made_or_shown_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    too_long = config.parent / ("x" * 250)
    for kind, folder in (("init", too_long), ("show", config.parent / "none")):
        assert main(["pki", kind, str(config), "-o", str(folder)]) == 2
        assert f"{folder}: " in capsys.readouterr().err
