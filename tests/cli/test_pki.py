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
