"""Headless Chromium for the report: found or skipped, and failed where TYPICALITY_REQUIRE_BROWSER=1 (CI)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
AXE = Path(__file__).parent / "vendor" / "axe.min.js"


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


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two years, with something of every application in the run directory, metadata and features."""
    from copy import deepcopy
    from dataclasses import replace

    from tests.report.test_sections import fill_all

    folder = tmp_path_factory.mktemp("full")
    data = synthetic_input(labels=["2016", "2019", "2024"], clusters=3, members=4)
    metadata = {i: {"camera": f"camera {n % 2}"} for n, i in enumerate(data.images["image_id"].to_pylist())}
    features = np.random.default_rng(0).normal(size=(data.elements.num_rows, 8)).astype(np.float32)
    data = replace(data, folder=folder, metadata=metadata, features=features, facts=deepcopy(data.facts))
    fill_all(data)
    return write_report(data, folder)


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
    """The text of axe-core, which is in the repository for these tests alone, under its own licence."""
    return AXE.read_text(encoding="utf-8")
