"""What the documents say exists: paths, modules, tests, links, packages, layers."""

import argparse
import functools
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhpc.cli.main import COMMANDS, parser

REPO = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md")),
)
CONFIGS = sorted(f"configs/{path.name}" for path in (REPO / "configs").glob("*.yaml"))
TOP = ("fedhpc", "data_prep", "tests", "configs", "slurm", "examples", "docs", ".ci")
CODE = re.compile(r"`([^`\n]+)`")
A_PATH = re.compile(rf"(?<![\w./])(?:{'|'.join(map(re.escape, TOP))})/[\w./*-]*")
A_MODULE = re.compile(r"(?<![\w./])(?:fedhpc|data_prep)(?:\.(?!sif\b)\w+)+")
A_TEST = re.compile(r"\btest_\w+\b(?!\.py|/)")
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
# Metaphors that stood for what the field has words for: secure channel, aggregator, placement, report, correct.
OURS = re.compile(
    r"\b(doors?|offices?|seats?|seated|(is|are) told|shout(s|ed)?|mend(s|ed)?|in words|walls?)\b", re.IGNORECASE
)
# What a reader of a page makes (tests/examples/test_pages.py carries these pages out), and what was made for a trial.
MADE_BY_THE_READER = {
    "fedhpc/aggregation/meamed.py",
    "fedhpc/algorithms/fedexp.py",
    "fedhpc/aggregation/server_nesterov.py",
    "data_prep/arrays.py",
    "tests/data_prep/test_arrays.py",
    "configs/mine.yaml",
}


def text_of(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def outside_of_blocks(page: str) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def named(pattern: re.Pattern[str], page: str) -> Iterator[str]:
    """What matches within code spans."""
    for span in CODE.findall(outside_of_blocks(page)):
        yield from pattern.findall(span)


@functools.cache
def defined_tests() -> frozenset[str]:
    files = [path.read_text(encoding="utf-8") for path in (REPO / "tests").rglob("*.py")]
    return frozenset(name for text in files for name in re.findall(r"^def (test_\w+)", text, flags=re.MULTILINE))


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something that a module holds."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place = REPO.joinpath(*parts[:length])
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            found = importlib.import_module(".".join(parts[:length]))
            return functools.reduce(lambda value, name: getattr(value, name, None), parts[length:], found) is not None
    return False


@pytest.mark.parametrize("page", PAGES)
def test_paths_of_the_page_exist(page: str) -> None:
    paths = {path.rstrip(".") for path in named(A_PATH, page)}
    assert sorted(p for p in paths - MADE_BY_THE_READER if not list(REPO.glob(p.rstrip("/")))) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_page_exist(page: str) -> None:
    targets = {target for target, _ in LINK.findall(outside_of_blocks(page)) if target and "://" not in target}
    assert sorted(t for t in targets if not (REPO / page).parent.joinpath(t).exists()) == []


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """What a link may end in: the page's headings, as GitHub writes them."""
    outside = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", outside, flags=re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("page", PAGES)
def test_anchors_of_the_page_exist(page: str) -> None:
    links = [link for link in LINK.findall(outside_of_blocks(page)) if link[1] and "://" not in link[0]]
    pages = [(REPO / page).parent / target if target else REPO / page for target, _ in links]
    assert [link for link, path in zip(links, pages, strict=True) if link[1][1:] not in anchors(path.resolve())] == []


@pytest.mark.parametrize("page", PAGES)
def test_modules_of_the_page_exist(page: str) -> None:
    assert sorted(name for name in set(named(A_MODULE, page)) if not resolves(name)) == []


@pytest.mark.parametrize("page", PAGES)
def test_tests_of_the_page_exist(page: str) -> None:
    assert sorted(set(A_TEST.findall(text_of(page))) - defined_tests()) == []


@pytest.mark.parametrize(
    "page", (*PAGES, *CONFIGS, *sorted(f"slurm/{path.name}" for path in (REPO / "slurm").iterdir()))
)
def test_page_uses_the_words_of_the_field(page: str) -> None:
    assert [line for line in text_of(page).splitlines() if OURS.search(line)] == []


def options_of(top: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of all below it."""
    found: set[str] = set()
    for action in top._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(options_of, action.choices.values()))
    return found


@functools.cache
def options_of_command(name: str) -> frozenset[str]:
    top = next(action for action in parser(name)._actions if isinstance(action, argparse._SubParsersAction))
    return frozenset(options_of(top.choices[name]))


@pytest.mark.parametrize(
    "page", (*PAGES, "examples/own_model/README.md", *CONFIGS, "slurm/fedavg.sbatch", "slurm/sweep.sbatch")
)
def test_commands_of_the_page_exist(page: str) -> None:
    wrong = []
    for name, rest in re.findall(r"run\.py ([a-z]+)\b([^`\n]*)", text_of(page)):
        if (page, name) == ("docs/add-an-importer.md", "prepare") and "arrays" in rest:
            continue
        options = re.findall(r"(?<=\s)--[a-z][a-z-]+", re.split(r"\s{3,}|;", rest)[0])
        if name not in COMMANDS or set(options) - options_of_command(name):
            wrong.append(f"run.py {name}{rest}")
    assert wrong == []


def test_architecture_lists_every_package() -> None:
    listed = set(re.findall(r"^\| `([\w/]+)` \|", text_of("docs/architecture.md"), flags=re.MULTILINE))
    packages = {f"fedhpc/{path.parent.name}" for path in (REPO / "fedhpc").glob("*/__init__.py")}
    assert packages | {"data_prep"} == listed


def test_architecture_draws_the_layers_of_the_contract() -> None:
    settings = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in settings if contract["type"] == "layers")
    drawn = re.search(
        r"^```text\n(fedhpc\.cli.*?)^```", text_of("docs/architecture.md"), flags=re.DOTALL | re.MULTILINE
    )
    assert drawn is not None
    assert [re.split(r"\s{2,}", line)[0] for line in drawn[1].splitlines()] == layers


def test_architecture_names_functions_where_they_are() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+`) \| (`[^|]+`) \|$", text_of("docs/architecture.md"), flags=re.MULTILINE)
    assert len(rows) > 10
    for functions, files in rows:
        texts = [text_of(path) for path in CODE.findall(files)]
        for name in (part for dotted in CODE.findall(functions) for part in dotted.split(".")):
            assert any(re.search(rf"^\s*(def|class) {name}\b", text, flags=re.MULTILINE) for text in texts), name


def test_readme_lists_every_page() -> None:
    linked = {target for target, _ in LINK.findall(text_of("README.md"))}
    assert {page for page in PAGES if page != "README.md"} <= linked
