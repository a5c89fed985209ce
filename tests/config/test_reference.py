"""The reference of the config's keys: complete, current, and true of every kind of value."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag

from fedhpc.cli.main import main
from fedhpc.config.reference import REQUIRED, keys_of, markdown
from fedhpc.config.schema import RunConfig, Section
from fedhpc.sweep.config import Sections

REPO = Path(__file__).resolve().parents[2]


class One(Section):
    """The first."""

    name: Literal["one"] = Field(default="one", description="which")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.5, description="a share")


class Two(Section):
    """The second."""

    name: Literal["two"] = Field(default="two", description="which")


class Toy(Section):
    """A root."""

    # Not `discriminator="name"`: that refuses fields with a validator of mode "before", which every Section has.
    rule: Annotated[
        Annotated[One, Tag("one")] | Annotated[Two, Tag("two")], Discriminator(lambda value: dict(value)["name"])
    ] = Field(default=One(), description="a rule")
    count: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(default="auto", description="a count")
    words: tuple[str, ...] = Field(description="some words")


@pytest.mark.parametrize("root", [RunConfig, Sections], ids=["run", "sweep"])
def test_every_key_has_a_description(root: type[Section]) -> None:
    keys = list(keys_of(root).all())
    assert [key.name for key in keys if len(key.text) < 8] == []
    assert [key.name for key in keys if key.text.endswith(".") or key.text != key.text.strip()] == []
    assert [key.name for key in keys if "any value" in key.values] == []


def test_docs_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    """`python run.py config reference > docs/config.md` makes them so."""
    assert main(["config", "reference"]) == 0
    assert (REPO / "docs" / "config.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_reference_names_every_field() -> None:
    named = {key.name.replace("[]", "") for key in keys_of(RunConfig).all()}
    for name, field in RunConfig.model_fields.items():
        assert name in named
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            assert {f"{name}.{key}" for key in inner.model_fields} <= named


def test_variants_limits_and_defaults() -> None:
    keys = {key.name: key for key in keys_of(Toy).all()}
    assert keys["count"].values == "whole number, at least 1, `auto`, or `null`"
    assert (keys["words"].values, keys["words"].default) == ("list of values", REQUIRED)
    assert keys["rule.share"].values == "number, above 0, below 1"
    text = markdown(keys_of(Toy))
    assert "## rule (name: one)\n\nThe first." in text and "## rule (name: two)\n\nThe second." in text
    assert markdown(keys_of(Toy), "rule.share").splitlines()[0] == "## rule (name: one)"
