"""The language of --where: what it keeps, and that nothing in it is ever executed."""

from __future__ import annotations

import pytest

from typicality.dataset.where import compile_where
from typicality.errors import DatasetError

ROW = {
    "year": "1955",
    "camera": "a",
    "Patient ID": 7,
    "note": "",
    "first": True,
    "score": 0.5,
    "text": "old",
    "code": "007",
    "version": "1.10",
    "width": "9",
    "height": "10",
}


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("year >= 1950", True),
        ("year < 200", False),  # as text '1955' would come before '200'
        ("1950 <= year < 1960", True),
        ("year == 1955.0", True),
        ("year == '1955'", True),
        ("camera == 'a' and year > 1960", False),
        ("camera == 'b' or not year > 1960", True),
        ("camera in ('a', 'c')", True),
        ("year not in [1955, 1956]", False),
        ("`Patient ID` == 7", True),
        ("note == ''", True),
        ("note is None", True),
        ("camera is not None", True),
        ("note < 5", False),
        ("note > 5", False),
        ("first", True),
        ("first == True", True),
        ("not note", True),
        ("score > -1", True),
        ("text < 'older'", True),
        ("(camera == 'a')", True),
        ("code == '007'", True),
        ("code == '7'", False),
        ("code in ('7', '07')", False),
        ("code == 7", True),  # a number was asked for
        ("code in (7, 8)", True),
        ("version == '1.1'", False),
        ("version != '1.1'", True),
        ("version < '1.9'", True),  # below and above are of numbers where both are
        ("width < '10'", True),
        ("width >= '9' and width <= '2000'", True),
        ("version == 1.1", True),
        ("`Patient ID` == '7.00'", True),  # cells that are numbers
        ("score < '10'", True),
        ("width < height", True),  # columns of a CSV file
    ],
)
def test_rows_kept(expression: str, kept: bool) -> None:
    assert compile_where(expression, ROW)(ROW) is kept


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "camera.__class__",
        "camera.__class__.__mro__ == 1",
        "year + 1 > 2",
        "9 ** 9 ** 9 > 1",
        "camera[0] == 'a'",
        "[c for c in camera]",
        "(lambda: 1)()",
        "f'{camera}' == 'a'",
        "camera := 'b'",
        "camera if year else note",
        "camera in camera",
        "b'a' == camera",
        "import os",
        "camera ==",
        "",
        "\0",
        "(" * 500 + "year" + ")" * 500,
        "not " * 1500 + "first",
        "year == 1 or " * 400 + "first",
    ],
)
def test_anything_else_is_refused_before_a_row_is_seen(expression: str) -> None:
    with pytest.raises(DatasetError, match="--where"):
        compile_where(expression, ROW)


def test_unknown_columns_name_the_nearest_and_hint_at_quotes() -> None:
    with pytest.raises(DatasetError, match=r"did you mean 'camera'.*quotes"):
        compile_where("camra == 'a'", ROW)


def test_text_against_a_number_names_the_value() -> None:
    with pytest.raises(DatasetError, match="compares 'old' with the number 5"):
        compile_where("text < 5", ROW)(ROW)
