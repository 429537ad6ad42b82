"""The shape of the project, read from its own source with `ast`: what may import what, and what nobody may do.

Each rule is a function from source text to a list of breaches, so that a second test can show it a breach.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from typicality.config import config_names
from typicality.dataset import builtin_datasets

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "typicality"
CLI = ROOT / "cli"
BUILTIN = PACKAGE / "dataset" / "builtin"

ORDER = (
    ("errors",),
    ("records", "metrics", "findings"),
    ("prompts",),
    ("config",),
    ("progress", "processes"),
    ("store",),
    ("dataset",),
    ("model",),
    ("paths",),
    ("scoring",),
    ("mining",),
    ("report",),
    ("run",),
    ("plan", "checks"),
    ("passes",),
    ("pipeline",),
    ("renewal", "rescoring"),
    ("machine", "applications", "tabular"),
    ("evaluation",),
    ("api",),
    ("__init__",),
)
"""The data's order. What stands together in one place may not import one another."""
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
LINES = 650
DATASETS = {*config_names(), *(info.name for info in builtin_datasets())}


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def module_name(path: Path) -> str:
    """typicality/model/card.py -> typicality.model.card; cli/app.py -> typicality.cli.app."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "typicality" else ("typicality", *parts))


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything of this package that is imported, wherever the import stands."""
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ("typicality", "cli"))


def stage_of(name: str) -> str:
    """typicality.model.card.model_card -> model; typicality -> __init__."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (parts[1] in RANK or parts[1] == "cli") else "__init__"


def late_imports(text: str, module: str) -> list[str]:
    """Return the imports of a module that go against the order."""
    own = stage_of(module)
    found = []
    for line, name in imports(ast.parse(text), module):
        other = stage_of(name)
        if other == "cli" or name.split(".")[0] == "cli":
            wrong = True
        elif own == other == "applications":
            wrong = name.split(".")[2:3] not in ([], module.split(".")[2:3])
        else:
            wrong = own != other and RANK[other] >= RANK[own]
        if wrong:
            found.append(f"{module}:{line} imports {name}")
    return found


def prints(text: str) -> list[str]:
    """Return the lines that print or write to the standard streams."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{node.lineno}: print()")
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and dotted(node.value) == "sys":
            found.append(f"{node.lineno}: sys.{node.attr}")
    return found


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def conditions(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every expression that decides which way the program goes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.match_case):
            yield node.pattern
            yield from [node.guard] if node.guard is not None else []


def dataset_branches(text: str) -> list[str]:
    """Return the conditions that know a data set's name."""
    return [
        f"{inner.lineno}: {inner.value!r}"
        for condition in conditions(ast.parse(text))
        for inner in ast.walk(condition)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value in DATASETS
    ]


def pickles(text: str) -> list[str]:
    """Return the lines that write or may read a pickle."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(a.name.split(".")[0] in PICKLERS for a in node.names):
            found.append(f"{node.lineno}: import")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            found.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Attribute) and dotted(node) in ("torch.save", "torch.load"):
            found.append(f"{node.lineno}: {dotted(node)}")
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only", "safe_serialization"):
            safe = node.arg != "allow_pickle"
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                found.append(f"{node.value.lineno}: {node.arg}")
    return found


PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def swallowed(text: str) -> list[str]:
    """Return the handlers of every error there is that do not raise one."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or dotted(node.type) in ("Exception", "BaseException")
        ):
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if not raises:
                found.append(f"{node.lineno}: except {dotted(node.type) if node.type else ''}")
    return found


def breaches(paths: list[Path], rule) -> list[str]:
    return [f"{p.relative_to(ROOT)}:{found}" for p in paths for found in rule(p.read_text(encoding="utf-8"))]


def test_every_part_of_the_package_has_a_place_in_the_order():
    parts = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert parts <= set(RANK), "give a new part its place in ORDER"


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_stage_imports_only_earlier_ones(path: Path):
    assert late_imports(path.read_text(encoding="utf-8"), module_name(path)) == []


def test_the_command_line_imports_its_own_modules_relatively():
    """An absolute `import cli` works in the repository and fails where the package is installed."""
    found = []
    for path in sources(CLI):
        names = imports(ast.parse(path.read_text(encoding="utf-8")), module_name(path))
        found += [f"{path.name}:{line}" for line, name in names if name.split(".")[0] == "cli"]
    assert found == []


def test_only_the_command_line_prints():
    """The script that builds the embedded data is a program of its own and may say what it does."""
    assert breaches([p for p in sources(PACKAGE) if p != BUILTIN / "build.py"], prints) == []


def test_no_branch_knows_a_data_set_by_name():
    assert breaches([p for p in sources(PACKAGE, CLI) if BUILTIN not in p.parents], dataset_branches) == []


def test_nothing_is_pickled():
    assert breaches(sources(PACKAGE, CLI), pickles) == []


def test_no_handler_swallows_every_error():
    """Only the command line may: it turns the last unknown error into an exit code."""
    assert breaches(sources(PACKAGE), swallowed) == []


def test_modules_have_one_subject():
    long = {
        str(p.relative_to(ROOT)): n for p in sources(PACKAGE, CLI) if (n := len(p.read_text().splitlines())) > LINES
    }
    assert long == {}, f"more than {LINES} lines"


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("typicality.model.card", "from typicality.scoring import noise", True),
        ("typicality.model.card", "def f():\n    import typicality.pipeline", True),
        ("typicality.model.card", "from typicality import pipeline", True),
        ("typicality.model.card", "from ..mining import boxes", True),
        ("typicality.model.card", "from typicality.dataset import LabelledImages", False),
        ("typicality.model.card", "from .latents import LatentStore", False),
        ("typicality.pipeline", "from typicality.report.view import ReportInput", False),
        ("typicality.pipeline", "from typicality.cli import app", True),
        ("typicality.pipeline", "import cli", True),
        ("typicality.applications.audit", "from typicality.evaluation import classify", True),
        ("typicality.applications.audit", "from typicality.applications.localize import boxes", True),
        ("typicality.applications.audit", "from typicality.applications.audit import rows", False),
        ("typicality.store", "import typicality", True),
    ],
)
def test_the_order_is_enforced(module: str, text: str, wrong: bool):
    """The rule itself, on imports that are right and wrong."""
    assert bool(late_imports(text, module)) is wrong


@pytest.mark.parametrize(
    ("rule", "text", "wrong"),
    [
        (prints, "print('x')", True),
        (prints, "import sys\nsys.stderr.write('x')", True),
        (prints, "progress.say('print')", False),
        (dataset_branches, "if name == 'emoji': pass", True),
        (dataset_branches, "x = 1 if source in ('a', 'flags') else 2", True),
        (dataset_branches, "match name:\n    case 'g3': pass", True),
        (dataset_branches, "[x for x in y if x != 'elpv']", True),
        (dataset_branches, "name = source or 'emoji'", False),
        (pickles, "import pickle", True),
        (pickles, "torch.save(x, path)", True),
        (pickles, "np.load(path, allow_pickle=True)", True),
        (pickles, "np.load(path, allow_pickle=False)", False),
        (pickles, "from safetensors.torch import save_file", False),
        (swallowed, "try:\n    f()\nexcept Exception:\n    pass", True),
        (swallowed, "try:\n    f()\nexcept:\n    x = 1", True),
        (swallowed, "try:\n    f()\nexcept Exception as e:\n    raise DatasetError from e", False),
        (swallowed, "try:\n    f()\nexcept OSError:\n    pass", False),
    ],
)
def test_the_rules_notice_what_they_forbid(rule, text: str, wrong: bool):
    assert bool(rule(text)) is wrong
