"""`--help` of every command: quick, within 80 columns, with defaults and two examples that parse."""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhpc.cli.common import WIDTH, OutputFile, Parser
from fedhpc.cli.main import COMMANDS, main, parser
from tests.conftest import run_limited

HEAVY = {"torch", "numpy", "monai", "opacus", "scipy", "h5py", "mpi4py", "pydantic", "cryptography", "yaml", "submitit"}
LOADED = """
import sys
from fedhpc.__main__ import run
try:
    run()
except SystemExit:
    print("loaded", *sys.modules)
"""
PLACES = [(name, ()) for name in COMMANDS] + [
    (name, (kind,))
    for name, kinds in {
        "prepare": (
            "phantom",
            "images",
            "dicom",
            "nifti",
            "npz",
            "compare",
            "landmarks",
            "statistics",
            "distributions",
            "check",
        ),
        "budget": ("init", "show", "grant"),
        "pki": ("init", "issue", "revoke", "show"),
        "sweep": ("start", "status", "resume", "cancel"),
        "bench": (
            "dp",
            "gpu",
            "codec",
            "import",
            "round",
            "harmonise",
            "wire",
            "splits",
            "legacy",
            "early",
            "contribution",
            "stress",
            "algorithms",
            "schedule",
            "gather",
            "secagg",
            "sparse",
        ),
        "config": ("show", "reference"),
    }.items()
    for kind in kinds
]
OLD_LINES = """
prepare phantom -o out --images 200 --size 32 --seed 3 --difficulty 0.5
prepare images in -o out --sites 2 --skew 0.5 --size 32 --seed 1 --modality mr --fold 1/5 --reference 9 --all-test
prepare images in -o out --patient-csv t.csv --patient-regex x --val-share 0.2 --split-folders --follow-links
prepare images in -o out --repair-nan --skip-unreadable --replace --list-files
prepare dicom in -o out --site a --lesion patch --roi gtv --patch-mm 30 --stack 1 --window lung bone --size 32 --find x
prepare dicom in -o out --ocr --follow-links --patient-regex x --blank b.yaml --quarantine q.png
prepare nifti in -o out --sites 2 --labels t.csv --modality mr --mask-suffix x --patient-regex y --plane axial --slabs 2
prepare npz a.npz -o out --classes a b --site s --secret f --replace --all-test
prepare compare a.h5 b.h5 -o x.html --images 9 --backbone phantom --reference r.h5 --config c.yaml --frequencies 3
prepare landmarks r.h5 --frequencies 3
prepare statistics a.h5 -o a.json --epsilon 0.2 --ledger d
prepare distributions a.json b.json
prepare check a.h5 b.h5 --png sheet.png
train c.yaml --set a.b=1 --set c=2 --run-dir d --stop-after 2 --init-from r --take-over --status f
preflight
preflight c.yaml --set a=1 --run-dir d --report
preflight --report c.yaml
world
evaluate runs/a --shard x.h5 --json
evaluate runs/a --site s --personal
contribution runs/a --on x.h5 y.h5 --split test --draws 9 --json
privacy a.yaml b.yaml --set privacy.epsilon=1 --json
budget init dir --cap 3 --delta 1e-6 --unit image --no-require-privacy --allow-off
budget show dir --json
budget grant dir --reason why --cap 4 --delta 1e-7 --forbid-off --accept-lost x
pki init c.yaml --days 3 -o out --set a=1
pki issue c.yaml site1 --days 3
pki revoke c.yaml site1
pki show c.yaml
egress runs/a --json
audit runs/a --set a=1 --site s --quick --seed 3 --no-real-patients --out d --json
sweep c.yaml --cluster local --dry-run --set a=1 --run-dir d
sweep --cluster local c.yaml
sweep c.yaml -o d --dry-run
sweep -o d c.yaml --cluster local
study c.yaml -o d --quick
study c.yaml --run-dir d
train c.yaml -o d
sweep status d --watch --json
sweep --watch status d
sweep resume d --cluster local
sweep cancel d
report a b -o r.html --json
bench dp --models a b --ways c --batch 2 --image-size 32 --device cpu --threads 1 --seconds 1 --json
bench codec --size 10 --density 0.5 --value-bits 8 --threads 2 --json
bench import -o out --files 2000 --size 64 --json
bench round -o out --workloads tiny --ways full --ranks 4 2 --repeats 2 --rounds 3 --parts rounds --markdown --json
bench round -o out --parts memory --record --check
bench harmonise c.yaml -o out --seeds 0 1 --epsilons none 1 --set a=1 --json
bench wire c.yaml -o out --densities 1 0.1 --down 1 --warm-up 0 4 --bits 32 4 --seeds 0 --set a=1 --json
bench splits c.yaml images -o out --splits 2 --draws 1 --reference 3 --size 32 --epsilons 1 2 --set a=1 --json
bench algorithms c.yaml -o out --images in --skew 0.3 1 --seeds 0 --folds 5 --algorithms scaffold --also a b=1 --json
bench schedule c.yaml -o out --site a --factor 4 --epsilons none 1 --seeds 0 1 --set a=1 --json
bench gather --sites 4 16 --densities 0.1 --size 10 --value-bits 4 --rounds 2 --predict 9 --json
bench sparse --rounds 4 --seeds 0 1 --json
bench secagg --sizes 10 20 --threads 1 2 --repeats 2 --sites 4 --width 3 --round-s 10 --json
bench algorithms c.yaml -o out --also a b=1 --also c d=2 --first-only --target 0.9 --set a=1
"""


def parser_of(name: str, kinds: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser of a command or of one of its kinds."""
    found: argparse.ArgumentParser = parser(name)
    for word in (name, *kinds):
        found = kinds_of(found)[word]
    return found


def kinds_of(one: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def examples_of(one: argparse.ArgumentParser) -> Iterator[list[str]]:
    """The words after the program, of each example."""
    lines = str(one.epilog).partition("\n\n")[0].replace("\\\n", " ").splitlines()
    for line in lines[1:]:
        assert line.startswith("  ")
        yield shlex.split(line.partition("python run.py ")[2].partition(" > ")[0])


def parsed(words: list[str]) -> argparse.Namespace:
    module = importlib.import_module(COMMANDS[words[0]].module)
    arrange = getattr(module, "arrange", list)
    return parser(words[0]).parse_args([words[0], *arrange(words[1:])])


def test_places_are_all_there_are() -> None:
    found = [(name, ()) for name in COMMANDS]
    found += [(name, (kind,)) for name in COMMANDS for kind in kinds_of(parser_of(name, ()))]
    assert sorted(found) == sorted(PLACES)


@pytest.mark.parametrize("name", COMMANDS)
def test_one_line_of_help_is_the_modules(name: str) -> None:
    module = importlib.import_module(COMMANDS[name].module)
    assert COMMANDS[name].help == module.HELP
    assert f"\n    {name}" in parser().format_help() or not module.HELP
    assert callable(module.run)


@pytest.mark.parametrize(("name", "kinds"), PLACES, ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_help_fits_shows_defaults_and_examples(name: str, kinds: tuple[str, ...]) -> None:
    one = parser_of(name, kinds)
    assert isinstance(one, Parser)
    text = one.format_help()
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    assert one.description
    for action in one._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        assert action.help, action.dest
        if not (action.default is None or action.default is False or action.default == []):
            assert "default: " in one._get_formatter()._expand_help(action), action.dest
    examples = list(examples_of(one))
    assert len(examples) == 2
    for words in examples:
        assert words[0] == name
        assert parsed(words)


def test_help_of_the_whole_fits() -> None:
    text = parser().format_help()
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    assert "world" not in text
    assert "exit status:" in text


def test_internals_of_the_launcher_are_hidden() -> None:
    text = parser_of("train", ()).format_help()
    assert "--status" not in text
    assert parsed(["train", "c.yaml", "--status", "f"]).status == Path("f")


@pytest.mark.parametrize("line", OLD_LINES.strip().splitlines())
def test_command_lines_of_before_still_parse(line: str) -> None:
    assert parsed(line.split())


def test_sweep_words_in_any_order() -> None:
    one = parsed(["sweep", "--watch", "status", "status"])
    assert (one.directory, one.watch) == (Path("status"), True)
    for flag in ("-o", "--out", "--ou", "--run-dir"):
        other = parsed(["sweep", flag, "status", "c.yaml"])
        assert (other.config, other.run_dir) == (Path("c.yaml"), Path("status"))
    two = parsed(["sweep", "--run", "status", "--clus", "local", "c.yaml"])
    assert (two.config, two.run_dir, two.cluster) == (Path("c.yaml"), Path("status"), "local")


OUTPUT_FILES = {
    ("report", "-o", ".html"),
    ("predict", "-o", ".csv"),
    ("export", "--onnx", ".onnx"),
    ("prepare check", "--png", ".png"),
    ("prepare compare", "-o", ".html"),
    ("prepare dicom", "--quarantine", ".png"),
    ("prepare statistics", "-o", ""),
    ("bench gpu", "-o", ".json"),
}


def test_output_files_are_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder that is missing, which is not made; in the place of a folder; with the suffix of another kind."""
    found = {
        (" ".join((name, *kinds)), action.option_strings[0], action.type.suffix)
        for name, kinds in PLACES
        for action in parser_of(name, kinds)._actions
        if isinstance(action.type, OutputFile)
    }
    assert found == OUTPUT_FILES
    (tmp_path / "folder").mkdir()
    for place, flag, suffix in sorted(OUTPUT_FILES):
        (taken := tmp_path / f"taken{suffix}").mkdir(exist_ok=True)
        # Python cannot look at the third: as in a folder that one may not enter, that is an OSError of its own.
        wrong = [tmp_path / "missing" / f"x{suffix}", taken, tmp_path / ("y" * 300) / f"x{suffix}"]
        wrong += [tmp_path / "shard.h5"] if suffix else []
        problems = ("does not exist", "is a folder", "does not exist", f"a {suffix} file")
        for path, problem in zip(wrong, problems, strict=False):
            assert main([*place.split(), flag, str(path)]) == 2
            told = capsys.readouterr().err
            assert f"{path}: " in told and problem in told and "Traceback" not in told, told
    assert not (tmp_path / "missing").exists()


def test_folder_of_runs_has_one_spelling_for_all() -> None:
    for name, kinds in PLACES:
        spellings = [set(action.option_strings) for action in parser_of(name, kinds)._actions]
        of_runs = next((one for one in spellings if "--run-dir" in one), {"-o", "--out", "--run-dir"})
        assert of_runs == {"-o", "--out", "--run-dir"}, name


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["--", "train"], ["sweep", "status", "d", "--dry-run"], ["sweep"], ["train", "a", "b"]]
)
def test_wrong_words_end_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["train"], ["sweep", "start"], ["bench", "dp"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = run_limited([sys.executable, "-c", LOADED, *words, "--help"], 60)
    loaded = done.stdout.partition("\nloaded ")[2].split()
    assert "fedhpc.cli.main" in loaded, done
    assert HEAVY & {name.partition(".")[0] for name in loaded} == set()
    if not words:
        assert "dataclasses" not in loaded, "half of the time that it would take"
        assert {name for name in loaded if name.startswith("fedhpc.cli.")} == {
            "fedhpc.cli.main", "fedhpc.cli.common", "fedhpc.cli.status"
        }  # fmt: skip


def test_program_is_named_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for started, shown in (
        ("/x/fedhpc", "fedhpc"),
        ("/x/fedhpc/__main__.py", "python -m fedhpc"),
        ("run.py", "run.py"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        text = parser("train").format_help()
        assert text.startswith(f"usage: {shown} [-h]")
        example = re.search(r"mpirun -n 4 (.*) train", text)
        assert example and example[1] == {"run.py": "python run.py"}.get(shown, shown)
