"""The house: imports go one way, the core needs no notebook packages, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "delt"
FLOORS = [  # from the ground up; a module imports from its own room and from floors below
    {"errors"},
    {"signals", "ranks", "typed"},
    {"schedule"},
    {"config", "recipes", "grouping", "storage", "coresets", "densification"},
    {"runtime", "processes"},
    {"pool", "beside", "world"},
    {"job"},
    {"data"},
    {"models"},
    {"team"},
    {"training"},
    {"artifacts"},
    {"engine"},
    {"stages", "methods"},
    {"checks"},
    {"analysis"},
    {"plots", "progress", "results", "drift", "shares"},
    {"pipeline"},
    {"batch", "lab", "study", "bench"},
    {"flags"},
    {"cli"},
    {"__main__"},
]
CORE = {
    "errors",
    "typed",
    "config",
    "schedule",
    "signals",
    "ranks",
    "recipes",
    "grouping",
    "coresets",
    "densification",
    "storage",
    "runtime",
    "processes",
    "pool",
    "beside",
    "world",
    "job",
    "data",
    "models",
    "team",
    "training",
    "artifacts",
    "engine",
    "stages",
    "methods",
}
CORE_NEEDS = {"torch", "triton", "torchvision", "numpy", "PIL", "safetensors", "pyarrow", "sklearn", "scipy", "joblib"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "notebooks")


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module that a file imports anywhere."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.append(node.module if node.module != "delt" else f"delt.{node.names[0].name}")
    return found


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", [path for path in FILES if room(path) != "__init__"], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    for module in imports(path):
        if module.startswith("delt."):
            target = module.split(".")[1]
            assert target == room(path) or floor(target) < floor(room(path)), f"{path.name} imports {module}, which is not below it"


def test_stages_are_siblings():
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not [module for module in imports(path) if module.startswith("delt.stages")], path


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in CORE], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_needs_few_packages(path):
    outside = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names) - {"delt"}
    assert outside <= CORE_NEEDS, f"{path.name} imports {outside - CORE_NEEDS}"


def test_the_core_runs_without_notebook_packages():
    """A bare GPU node has no tyro, tqdm, papermill, matplotlib: a whole pipeline is imported there."""
    code = (
        "import sys\n"
        "for name in ('tyro','tqdm','papermill','matplotlib','seaborn','IPython','ipywidgets','nbformat','pandas'):\n"
        "    sys.modules[name] = None\n"
        "import delt.pipeline, delt.stages.recover\n"
        "slow = {'torchvision', 'torch._dynamo', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, f'slow start: {slow} loaded before they are needed'\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_command_line_starts_without_torch():
    code = "import sys, delt.cli\nassert 'torch' not in sys.modules, 'slow start'\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_module_has_a_test():
    names = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    for path in FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        empty = parts[-1] == "__init__" and not path.read_text().strip()
        if parts[-1] == "__main__" or empty:
            continue
        name = "_".join(part for part in parts if part != "__init__") or "face"
        assert name in names, f"{'/'.join(parts)}.py has no tests/test_{name}.py"
