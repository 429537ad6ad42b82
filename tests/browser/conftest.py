"""Headless Chromium for the report: found or skipped, and failed where TYPICALITY_REQUIRE_BROWSER=1 (CI)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from typicality.report import write_report

sys.path.insert(0, str(Path(__file__).parents[2]))  # `tests` is not installed, whatever the runner's import mode
from tests.report.synthetic import synthetic_input

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = Path(__file__).parent / ".axe"


def unavailable(reason: str) -> None:
    """Skip where a browser is optional, fail where it is required."""
    if os.environ.get("TYPICALITY_REQUIRE_BROWSER") == "1":
        pytest.fail(f"TYPICALITY_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        unavailable("no Chromium is on the path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three years with four clusters of six; the third cluster comes from two images, the fourth is not significant."""
    data = synthetic_input(labels=["2016", "2019", "2024"], clusters=4, members=6)
    return write_report(data, tmp_path_factory.mktemp("report"))


class Page:
    """A page with what it asked for and complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def visit(self, path: Path, fragment: str = "") -> Any:
        self.page.goto(path.resolve().as_uri() + fragment)
        self.page.wait_for_load_state("load")
        self.page.wait_for_selector("html[data-ready=true]", state="attached")
        return self.page


@pytest.fixture
def new_page(browser: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Make pages with any context option; a screenshot of each is kept where TYPICALITY_SCREENSHOTS names a folder."""
    contexts: list[Any] = []

    def make(width: int = 1440, height: int = 900, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        return Page(context.new_page())

    yield make
    folder = os.environ.get("TYPICALITY_SCREENSHOTS")
    for number, context in enumerate(contexts):
        if folder:
            for page in context.pages:
                page.screenshot(path=str(Path(folder) / f"{request.node.name}-{number}.png"))
        context.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core, fetched once with npm into a folder that git ignores."""
    script = AXE / "axe.min.js"
    if not script.exists():
        AXE.mkdir(exist_ok=True)
        (AXE / ".gitignore").write_text("*\n")
        if shutil.which("npm") is None:
            unavailable("axe-core is not cached and npm is missing")
        done = subprocess.run(
            ["npm", "pack", "axe-core@4", "--silent"], cwd=AXE, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            unavailable(f"npm could not fetch axe-core: {done.stderr[-300:]}")
        archive = AXE / done.stdout.split()[-1]
        with tarfile.open(archive) as packed:
            content = packed.extractfile("package/axe.min.js")
            assert content is not None
            script.write_bytes(content.read())
        archive.unlink()
    return script.read_text(encoding="utf-8")
