"""What the documents say is true: their commands run, their links lead somewhere, the reference is the program's own.

The README's commands on a folder of one's own are carried out on such a folder, up to the point where work would
begin (`--dry-run`); its Python code runs with that work replaced.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
from PIL import Image

import typicality
from typicality.cli.app import app, run
from typicality.config import Settings
from typicality.pipeline import Result

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reports/README.md")
PLANNING = ("mine", "finetune", "score")
"""Commands whose --dry-run needs no finished run."""


def blocks(document: str, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines(document: str, program: str) -> list[str]:
    """Return the lines of shell blocks, and the code spans, that call a program."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = [line.split("  #")[0].strip() for block in blocks(document, "bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    found = [line for line in lines if line.split(" ")[0] == program and " " in line]
    return list(dict.fromkeys(found))


TYPICALITY = [(d, line) for d in DOCUMENTS for line in command_lines(d, "typicality")]
MAKE = [(d, line) for d in DOCUMENTS for line in command_lines(d, "make")]


def parse(words: list[str]) -> None:
    """Let the real commands read their words, without running them; wrong ones raise.

    A text may name a command without its argument.
    """
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands"), f"{command.name} needs a command"
    try:
        command.make_context(command.name, list(words))
    except Exception as error:
        if type(error).__name__ != "MissingParameter":
            raise


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the README's tour, with a few more images, in the working directory."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["file_name,year,photographer"]
    for i in range(24):
        Image.new("RGB", (32, 24), (10 * i, 99, 255 - 10 * i)).save(folder / f"{i:04}.jpg")
        rows.append(f"{i:04}.jpg,{1920 + i},{('Ada', 'Max', 'Lin')[i % 3]}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    for decade in (1920, 1930):
        (tmp_path / "cars" / str(decade)).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 24), (i, 0, decade % 200)).save(tmp_path / "cars" / str(decade) / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_readme_names_commands_of_all_kinds():
    """The tests below read the documents, and would pass on documents without commands."""
    assert len(command_lines("README.md", "typicality")) >= 8
    assert {"make demo", "make test"} <= set(command_lines("README.md", "make"))
    assert blocks("README.md", "python")


@pytest.mark.parametrize(("document", "line"), TYPICALITY)
def test_commands_can_be_read(document: str, line: str):
    """Every `typicality ...` of a document has commands, options and values that exist."""
    parse(shlex.split(line)[1:])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("typicality mine --labl year", "No such option"),
        ("typicality mine --seed many", "--seed"),
        ("typicality mnie", "needs a command"),
        ("typicality evaluate", "needs a command"),
    ],
)
def test_commands_that_cannot_be_read_are_noticed(line: str, complaint: str):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - typer's own, or an assertion
        parse(shlex.split(line)[1:])
    message = caught.value.format_message() if hasattr(caught.value, "format_message") else str(caught.value)
    assert complaint in message


@pytest.mark.parametrize(
    "line", [line for _, line in TYPICALITY if line.split()[1] in PLANNING and len(line.split()) > 2]
)
def test_commands_resolve_on_a_folder_like_the_one_described(line: str, photos: Path, capsys):
    """Settings exist, columns are found, and the plan says how many images there are."""
    words = [word for word in shlex.split(line)[1:] if word != "--dry-run"]
    assert run([*words, "--dry-run", "--json"]) == 0, capsys.readouterr().err
    document = json.loads(capsys.readouterr().out)
    assert sum(document["plan"]["labels"].values()) >= document["plan"]["images"] > 0


@pytest.mark.parametrize("code", blocks("README.md", "python"))
def test_python_code_runs(code: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """The call reaches the pipeline with the settings that it names; only the work itself is left out."""
    seen: list[Settings] = []

    def instead(settings: Settings, *_: Any) -> Result:
        seen.append(settings)
        table = pa.table({"typicality": [0.1, 0.3, 0.2]})
        return Result(Path("run"), table, table, table, Path("run/index.html"), {})

    monkeypatch.setattr("typicality.pipeline.mine", instead)
    exec(compile(code, "README.md", "exec"), {})
    assert Path(seen[0].dataset.source).name == "photos"
    assert capsys.readouterr().out.strip() == str(Path("run/index.html"))


@pytest.mark.parametrize(("document", "line"), MAKE)
def test_make_targets_exist(document: str, line: str):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    words = [word for word in line.split()[1:] if "=" not in word]
    assert set(words) <= targets


def test_every_make_target_is_explained():
    """`make help` shows the words behind ##; a target without them would be hidden."""
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.+)$", text, flags=re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## \S", text, flags=re.MULTILINE))
    assert {"venv", "demo", "test", "lint", "format", "types", "bench", "clean"} <= phony == explained


def test_the_reference_of_the_command_line_is_its_own_help():
    """`make docs` writes it again."""
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "docs" / "cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == module.reference(), "run `make docs`"


def links(document: str) -> list[str]:
    """Return the relative targets of links and pictures."""
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


LINKS = [(d, target) for d in DOCUMENTS for target in links(d)]


@pytest.mark.parametrize(("document", "target"), LINKS)
def test_links_lead_somewhere(document: str, target: str):
    """The file exists; a part after # is a heading of it."""
    name, _, anchor = target.partition("#")
    path = (ROOT / document).parent / name if name else ROOT / document
    assert path.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_are_found():
    assert ("README.md", "CONTRIBUTING.md") in LINKS


def test_files_that_are_named_exist():
    """Paths in code spans that look like files of the repository; what a run writes is left out."""
    missing = []
    for document in ("README.md", "CONTRIBUTING.md"):
        text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`([^`\s]+)`", text):
            part = span.split("/")[0]
            known = part in ("typicality", "cli", "configs", "tests", "docs", ".ci") and "<" not in span
            if known and "/" in span and not (ROOT / span).exists():
                missing.append(f"{document}: {span}")
    assert missing == []


def test_the_tree_in_contributing_is_the_tree():
    """Every part of the package stands in the picture, and nothing else."""
    picture = next(block for block in blocks("CONTRIBUTING.md", "text") if block.startswith("typicality/"))
    inside = picture.split("cli/")[0]
    shown = {line.split()[0].rstrip("/") for line in inside.splitlines()[1:]}
    package = ROOT / "typicality"
    parts = {
        p.name
        for p in package.iterdir()
        if (p.suffix == ".py" and p.stem != "__init__") or (p / "__init__.py").exists()
    }
    assert parts == shown


def test_the_changelog_is_about_this_version():
    """Headings are Unreleased or versions, newest first, and the version of the package is not older than the last."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(typicality.__version__)
    kinds = set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
