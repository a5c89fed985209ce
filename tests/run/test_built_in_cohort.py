"""The built-in cohort where its folder cannot be written: one message that names the file, not a failure inside."""

from pathlib import Path

import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.errors import FileError
from fedhpc.run.display import Console
from fedhpc.run.start.built_in_cohort import make_phantoms, write_phantoms


def test_folder_that_cannot_be_made_names_the_shard(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    config = RunConfig.model_validate(
        {
            "name": "x",
            "data": {
                "shards": str(tmp_path / "data" / "{site}.h5"),
                "sites": [{"name": "site1"}],
                "phantom": {"images": 400, "image_size": 32},
            },
            "privacy": {"off": True},
        }
    )
    with pytest.raises(FileError, match=r"data/site1\.h5: cannot be written: .*\. "):
        make_phantoms(config, ["site1"], Console(speaks=False))


def test_reference_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "reference.h5").mkdir()
    with pytest.raises(FileError, match=r"reference\.h5: cannot be written: .*\. "):
        write_phantoms(tmp_path / "reference.h5", 16, 32)
