"""Columns to labels: text, numbers, bins, several at once, their order, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from typicality.dataset.labels import in_order, lower_edge, text_of
from typicality.errors import DatasetError

from .conftest import Load, Write, encoded


def table(folder: Path, header: str, *lines: str) -> Path:
    """A CSV whose first column names the images 0.png, 1.png, ..., which are written too."""
    for number in range(len(lines)):
        (folder / f"{number}.png").write_bytes(encoded(number))
    body = "".join(f"{number}.png,{line}\n" for number, line in enumerate(lines))
    (folder / "t.csv").write_text(f"file_name,{header}\n{body}", encoding="utf-8")
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("text", "width", "edge"),
    [
        ("1923", 10, "1920"),
        ("1920", 10, "1920"),
        ("1929.999", 10, "1920"),
        ("-1", 10, "-10"),
        ("3", 10, "0"),
        ("0.3", 0.1, "0.3"),
        ("0.29", 0.1, "0.2"),
        ("7", 2.5, "5"),
        ("1e3", 100, "1000"),
    ],
)
def test_bins_start_at_multiples_of_their_width(text: str, width: float, edge: str) -> None:
    """0.3 lies in [0.3, 0.4): binary fractions would put it into [0.2, 0.3)."""
    assert lower_edge(text, width, "row") == edge


@pytest.mark.parametrize("text", ["unknown", "inf", "192x"])
def test_a_value_without_a_bin_is_named(text: str, tmp_path: Path, load: Load) -> None:
    with pytest.raises(DatasetError, match=rf"1\.png.*{text!r} is not a number"):
        load(table(tmp_path, "year", "1923", text), label="year", bin=10)


def test_bins_are_labels_in_numeric_order(tmp_path: Path, load: Load) -> None:
    data = load(table(tmp_path, "km", "900", "15", "1100", "14.5"), label="km", bin=10)
    assert data.labels == ("10", "900", "1100")
    assert data.ordered
    assert data.number_of("10") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(1999.0, "1999"), ("1999.0", "1999"), (1999, "1999"), (1.5, "1.5"), (" a ", "a"), (None, ""), (float("nan"), "")],
)
def test_cells_as_text(value, text: str) -> None:
    assert text_of(value) == text


def test_order_is_numeric_else_natural_else_as_wished() -> None:
    assert in_order(["10", "9", "-1.5"], None) == (("-1.5", "9", "10"), True)
    assert in_order(["ward 10", "ward 9", "Ward 1"], None) == (("Ward 1", "ward 9", "ward 10"), False)
    assert in_order(["new", "old", "mid"], ["old", "mid", "new"]) == (("old", "mid", "new"), True)


def test_chosen_labels_keep_their_order_and_leave_the_others_out(tmp_path: Path, load: Load) -> None:
    source = table(tmp_path, "age", "new", "old", "mid", "old")
    data = load(source, label="age", labels=("old", "new"))
    assert data.labels == ("old", "new")
    assert data.ordered
    assert len(data) == 3
    with pytest.raises(DatasetError, match="did you mean 'old'"):
        load(source, label="age", labels=("odl", "new"))


def test_a_separator_gives_several_labels(tmp_path: Path, load: Load) -> None:
    data = load(table(tmp_path, "ill", "Mass | Nodule", "Nodule", "|Mass|Mass"), label="ill", label_separator="|")
    assert sorted(i.labels for i in data) == [("Mass",), ("Mass", "Nodule"), ("Nodule",)]
    assert data.number_of("Mass") == 2


def test_lists_in_json_are_several_labels(tmp_path: Path, load: Load) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    lines = [json.dumps({"file_name": "0.png", "tags": ["a", "b"]}), json.dumps({"file_name": "1.png", "tags": []})]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    data = load(tmp_path / "t.jsonl", label="tags")
    assert [i.labels for i in data] == [("a", "b")]
    assert any("1 of 2 images have no value" in w for w in data.warnings)


def test_rows_without_a_label_are_counted(tmp_path: Path, load: Load) -> None:
    data = load(table(tmp_path, "c", "a", "b", "", "  "), label="c")
    assert len(data) == 2
    assert "2 of 4 images have no value in the column 'c' and are left out" in data.warnings


HOSTILE = ["../../etc", "<script>alert(1)</script>", "{label}", "a/b\\c", "'; drop", "日本 🚗", "-rf", "a" * 300, "NA"]


def test_hostile_label_names_pass_unchanged(tmp_path: Path, load: Load) -> None:
    """Labels are data: whoever writes them into a path or a page has to quote them there."""
    for number in range(len(HOSTILE)):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    lines = (json.dumps({"file_name": f"{n}.png", "label": label}) for n, label in enumerate(HOSTILE))
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert set(load(tmp_path / "t.jsonl").labels) == set(HOSTILE)


def test_names_of_data_sets_are_safe_in_paths(write: Write, load: Load, monkeypatch) -> None:
    root = write("my cars & <b>/x/1.png", 1, "my cars & <b>/y/2.png", 2)
    assert load(root / "my cars & <b>").name == "my-cars-b"
    monkeypatch.chdir(root / "my cars & <b>")
    assert load(".").name == "my-cars-b"


def test_composed_and_decomposed_letters_are_one_label(write: Write, load: Load) -> None:
    """macOS writes é as e and an accent; tables usually as one letter."""
    assert load(write("caf\u00e9/1.png", 1, "cafe\u0301/2.png", 2, "bar/3.png", 3)).labels == ("bar", "caf\u00e9")


def test_rare_and_unequal_labels_are_warned_about(tmp_path: Path, load: Load) -> None:
    data = load(table(tmp_path, "c", *["many"] * 60, "rare"), label="c", min_per_label=12)
    assert any("12" in w and "'rare' (1)" in w for w in data.warnings)
    assert any("very unequal" in w for w in data.warnings)


def test_max_per_label_does_not_depend_on_the_order_of_rows(tmp_path: Path, load: Load) -> None:
    lines = ["a"] * 20 + ["b"] * 10
    source = table(tmp_path, "c", *lines)
    some = load(source, label="c", max_per_label=4)
    assert {label: some.number_of(label) for label in some.labels} == {"a": 4, "b": 4}
    rows = source.read_text().splitlines()
    source.write_text("\n".join([rows[0], *reversed(rows[1:])]))
    assert load(source, label="c", max_per_label=4).fingerprint == some.fingerprint
    more = load(source, label="c", max_per_label=5)
    assert {i.image_id for i in some} < {i.image_id for i in more}


def test_nan_is_no_label(tmp_path: Path, load: Load) -> None:
    """Tables that were written by pandas say NaN as text; rows of it are counted like empty ones."""
    for number, year in enumerate(("1923", "NaN", "1958", "nan", "")):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
        with (tmp_path / "metadata.csv").open("a") as file:
            file.write(("file_name,year\n" if not number else "") + f"{number}.png,{year}\n")
    assert load(tmp_path, label="year").labels == ("1923", "1958")
    assert load(tmp_path, label="year", bin=10).labels == ("1920", "1950")
