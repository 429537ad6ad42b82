"""Documents as people read them."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console

from typicality.cli.console import BarProgress, print_document, print_json, say, words


def test_settings_are_plain_words() -> None:
    planting = {"labels": 2, "motifs": ("glyph", "tint"), "distractors": (), "control": False, "at": None}
    assert words(planting) == "labels 2, motifs glyph and tint, distractors none, control no, at n/a"
    assert words({"template": "a car, {label}", "null": ""}) == 'template "a car, {label}", null ""'
    assert words({"a": {"b": 1, "c": [1, 2]}}) == "a (b 1, c 1 and 2)"


def test_a_document_has_a_line_an_entry_and_a_line_a_row(capsys) -> None:
    """What could not be measured, or is not known, is not 0 and not "none"; rows leave it out."""
    print_document(
        {
            "accuracy": 0.5,
            "gain": None,
            "labels": ("2016", "2019"),
            "recall": {"2016": 0.5, "2019": math.nan},
            "confusion": {"2016": {"2016": 3, "2019": 1}, "2019": {"2016": 0, "2019": 0}},
            "rows": [{"method": "ours", "purity": 0.9, "gain": None}, {"method": "hog", "purity": 0.4}],
            "runs": [],
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "accuracy: 0.5",
        "gain: n/a",
        "labels: 2016, 2019",
        "recall: 2016 0.5, 2019 n/a",
        "confusion:",
        "  2016: 2016 3, 2019 1",
        "  2019: 2016 0, 2019 0",
        "rows:",
        "  method ours  purity 0.9",
        "  method hog  purity 0.4",
        "runs: none",
    ]


def test_a_terminal_in_ascii_gets_escapes_and_json_stays_json(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    print_json({"é": "漢 😀 \\"})
    print_document({"label": "é"})
    out.flush()
    document, text = out.buffer.getvalue().decode("ascii").rsplit("label", 1)
    assert json.loads(document) == {"é": "漢 😀 \\"}
    assert text == ": \\xe9\n"


def test_a_label_is_no_name_of_an_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    # not `file`, which would be put back as this test's stream and hide what later tests print
    monkeypatch.setattr("typicality.cli.console.stderr._file", out)
    say("warning: labels ':cat:' [bold] and 'a:new:b'")
    assert out.getvalue() == "warning: labels ':cat:' [bold] and 'a:new:b'\n"


@pytest.mark.parametrize("label", ["a:cat:b", "x [bold] y", "[/old]"])
def test_a_bar_shows_labels_as_they_are(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    console = rich.console.Console(file=(out := io.StringIO()), force_terminal=True, width=200)
    monkeypatch.setattr("typicality.cli.console.stderr", console)
    bar = BarProgress()
    bar.start(f"maps of {label}", 2)
    bar.advance(1, label)
    bar.finish()
    assert f"maps of {label}" in out.getvalue()
    assert out.getvalue().count(label) >= 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", ["--help", "datasets"])
def test_a_full_disk_is_no_bug(words: str) -> None:
    """Where help is written at once, and where what was printed is written on the way out."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "typicality.cli", words], stdout=full, stderr=subprocess.PIPE, text=True,
            env=environment, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
