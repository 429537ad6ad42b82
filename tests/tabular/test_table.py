"""Tables in and out: what columns are taken for, and that no cell that is not filled ever changes."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tabular.conftest import WriteTable
from typicality.errors import DatasetError, OutputError, SettingsError
from typicality.tabular.balance import BalanceOptions
from typicality.tabular.columns import column_of
from typicality.tabular.impute import ImputeOptions
from typicality.tabular.preparing import labels_of_rows, options_from, prepare
from typicality.tabular.table import Sheet, output_path, read_sheet, write_sheet


@pytest.mark.parametrize(
    ("cells", "kind", "gaps"),
    [
        (["1.50", "2", "3.25", ""], "number", 1),
        (["1", "2", "30", "NA"], "integer", 1),
        (["34.0", "2.0", "30", ""], "integer", 1),
        ([34.0, None, 2.0, 30.0], "integer", 1),
        ([1e300, -1e300, 5e299, None], "number", 1),
        ([1, 2, 30, "NA", ""], "integer", 2),
        (["1", "0", "1", "?"], "category", 1),
        (["a", "b", "a", " "], "category", 1),
        (["a", "NA", "a", "b"], "category", 0),
        (["7", "7", "", "7"], "constant", 1),
        (["", "", "nan", ""], "empty", 4),
        (["2020-01-31", "2021-02-01", "", "2020-05-05"], "passed", 1),
        (["007", "123", "555", "042"], "category", 0),
        (["1", "2", "3", "inf"], "integer", 0),
        ([1.5, None, float("nan"), 2.5, 3.5], "number", 2),
        ([True, False, None], "category", 1),
        ([[1], [2], None], "passed", 1),
        (["1", "two", "3"], "category", 0),
        ([f"name {i}" for i in range(30)], "passed", 0),
    ],
)
def test_what_a_column_is_taken_for(cells: list[Any], kind: str, gaps: int):
    """NA is a gap among numbers and a category among texts (Namibia); an infinite number is no gap."""
    column = column_of("x", cells)
    assert (column.kind, int(column.gaps.sum())) == (kind, gaps)


def test_numbers_that_are_names():
    column = column_of("x", ["3", "1", "2", ""], category=True)
    assert (column.kind, column.choices) == ("category", ("3", "1", "2"))
    assert column.cell(1.0) == "1"
    assert column_of("x", ["a", "b"], ignored=True).kind == "passed"
    assert column_of("x", ["1", "2", "-9"], missing=["-9"]).gaps.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("cells", "missing", "gaps"),
    [
        ([1, 2, 3, -999], "-999", [3]),
        ([1.5, 2.5, -999.0, None], "-999", [2, 3]),
        (["1.5", "2.5", "-999.0", "-999"], "-999", [2, 3]),
        ([1.5, 99.9, 2.5], "99.90", [1]),
        (["x", "-999", "y"], "-999", [1]),
        ([2**60, 2**60 + 1, 2**60 + 2], str(2**60), [0]),
        (["007", "7", "07"], "7", [1]),
        ([True, False, True], "1", []),
    ],
)
def test_a_number_that_stands_for_missing_counts_however_it_is_written(cells: list[Any], missing: str, gaps: list[int]):
    """As a whole number, a float or text; but codes are compared as texts, long IDs exactly, and true is not 1."""
    column = column_of("x", cells, missing=[missing])
    assert [i for i, gap in enumerate(column.gaps) if gap] == gaps


def test_numbers_that_stand_for_missing_in_parquet(tmp_path: Path):
    table = pa.table({"i": [1, -999, 3, 4], "f": [0.5, -999.0, 1.5, -999.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = prepare(tmp_path / "t.parquet", ImputeOptions(missing="-999"))
    assert [int(column.gaps.sum()) for column in found.columns] == [1, 2]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
def test_numbers_of_less_than_double_precision_are_read_as_people_write_them(tmp_path: Path, kind: pa.DataType):
    """99.9 in single precision is 99.9000015 in double precision: what --missing names, and a label's name, is 99.9."""
    cells = np.array([1.5, 99.9, 0.7, np.nan, np.inf], kind.to_pandas_dtype())
    pq.write_table(pa.table({"f": pa.array(cells, kind)}), tmp_path / "t.parquet")
    sheet = read_sheet(tmp_path / "t.parquet")
    assert sheet.cells["f"] == pytest.approx([1.5, 99.9, 0.7, np.nan, np.inf], rel=1e-12, nan_ok=True)
    assert column_of("f", sheet.cells["f"], missing=["99.9"]).gaps.tolist() == [False, True, False, True, False]
    assert labels_of_rows(sheet, "f").names[:2] == ("0.7", "1.5")
    write_sheet(tmp_path / "o.parquet", sheet, {"f": {3: 0.25}})
    written = pq.read_table(tmp_path / "o.parquet").column("f").to_numpy()
    assert written.tolist() == [*cells[:3].tolist(), 0.25, np.inf]


def test_the_index_of_pandas_is_not_learned(tmp_path: Path):
    """Rows left after a selection keep their numbers in a column that has no meaning; --category asks for it."""
    pandas = json.dumps({"index_columns": ["__index_level_0__", {"kind": "range"}], "columns": []})
    table = pa.table({"x": [1.5, 2.5, 4.0], "__index_level_0__": [3, 7, 8]})
    path = tmp_path / "t.parquet"
    pq.write_table(table.replace_schema_metadata({"pandas": pandas}), path)
    found = prepare(path, ImputeOptions()).summary()
    assert found["learned"] == ["x"]
    assert found["notes"] == ["'__index_level_0__' is the index that pandas stored"]
    assert prepare(path, ImputeOptions(category="__index_level_0__")).summary()["learned"] == ["x", "__index_level_0__"]
    ignored = prepare(path, ImputeOptions(ignore="__index_level_0__")).summary()
    assert ignored["notes"] == ["'__index_level_0__' left out as asked"]


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1,5", "2,5", "NA", "-3"], "passed"),
        (["1.234,5", "+2,5", "2", ""], "passed"),
        (["1,5", "2,5", "2,5 or 3"], "category"),
        (["1,2,3", "1,2", "1"], "category"),
        (["007", "042", "1.5"], "category"),
    ],
)
def test_numbers_with_decimal_commas_are_not_taken_for_names(texts: list[str], kind: str):
    """What the user calls a category is one all the same: 1,2 may be two answers."""
    column = column_of("x", texts)
    assert (column.kind, "has commas" in column.why) == (kind, kind == "passed")
    assert column_of("x", texts, category=True).kind == "category"


@pytest.mark.parametrize("last", [2**53, -(2**53) - 1, 8901410321111851072])
@pytest.mark.parametrize("kind", [int, str])
def test_whole_numbers_that_a_float_does_not_tell_apart_are_left(last: int, kind: type):
    """2^53 and 2^53 + 1 are one float64: a column of such IDs would be constant, and its gap the first row's ID."""
    for cells in ([kind(last - 1), None, kind(last), kind(last + 1)], [kind(last), None]):
        column = column_of("x", cells)
        assert (column.kind, column.gaps.tolist().index(True)) == ("passed", 1)
        assert "2^53" in column.why
    assert column_of("x", [kind(last - 1), kind(last)], category=True).choices == (kind(last - 1), kind(last))
    assert column_of("x", [kind(v) for v in (1, 2, 2**53 - 1)]).kind == "integer"


@pytest.mark.parametrize(
    ("cells", "category", "names"),
    [
        (["1", "0", "NA", "?", "-", "1"], False, ("0", "1")),
        ([1, 0, "n/a", None], False, ("0", "1")),
        (["1", "0", "NA"], True, ("0", "1", "NA")),
        (["a", "b", "NA"], False, ("a", "b", "NA")),
        (["007", "042", "NA"], False, ("007", "042", "NA")),
    ],
)
def test_words_among_labels_that_are_numbers_are_no_label(cells: list[Any], category: bool, names: tuple[str, ...]):
    """As in a column: NA says that there is no number, and may be a name among names."""
    labels = labels_of_rows(Sheet(Path("t.csv"), {"y": cells}), "y", category=category)
    assert set(labels.names) == set(names)
    assert [labels.names[code] if code >= 0 else None for code in labels.codes] == [
        str(cell) if str(cell) in names else None for cell in cells
    ]


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["01", "02", "12"], "category"),
        (["T10", "T11", "T12"], "category"),
        (["10+01", "11+01"], "category"),
        (["T10:00", "11:30"], "passed"),
        (["31.1.2020", "1/2/2020"], "passed"),
        (["2020-01-31T10", "2020-W05"], "passed"),
        (["20200131T10:15", "20200131T10:16"], "passed"),
    ],
)
def test_codes_are_no_times(texts: list[str], kind: str):
    """Python reads 01 as one o'clock; without a separator it is a code."""
    assert column_of("x", texts).kind == kind


def test_what_the_user_calls_a_category_is_never_a_date():
    for texts in (["10", "20", "10"], ["2020-01-31", "2021-02-01"], ["10:30", "11:30"]):
        column = column_of("x", texts, category=True)
        assert (column.kind, column.choices) == ("category", tuple(dict.fromkeys(texts)))


def test_one_text_alone_is_one_element():
    options = ImputeOptions(ignore="id", missing="unknown", category=["x"])
    assert (options.ignore, options.missing, options.category) == (("id",), ("unknown",), ("x",))
    assert options_from(BalanceOptions, label="y", rare="fraud").rare == ("fraud",)
    assert options_from(BalanceOptions, label="y", rare=["a", "b"]).rare == ("a", "b")


@pytest.mark.parametrize("seed", [-1, 2**31, 20240101123])
def test_a_seed_is_in_the_range_of_every_generator(seed: int):
    with pytest.raises(SettingsError, match="--seed must be at least 0 and below 2147483648"):
        ImputeOptions(seed=seed)
    assert BalanceOptions(seed=2**31 - 1).seed == 2**31 - 1


def test_more_different_texts_than_the_limit_are_left_alone():
    cells = ["a", "b", "c"] * 10
    assert column_of("x", cells, limit=3).kind == "category"
    passed = column_of("x", cells, limit=2)
    assert passed.kind == "passed"
    assert "3 different texts" in passed.why


@pytest.mark.parametrize(
    ("cells", "value", "cell"),
    [
        (["1.50", "2", "3"], 1.23456, "1.23"),
        (["1.50", "2", "3"], 2.0, "2"),
        (["1", "2", "3"], 1.6, "2"),
        ([1, 2, 3], 1.6, 2),
        (["34.0", "2.0", "30.0"], 51.8, "52.0"),
        (["34", "2.0", "3.50e1"], 51.8, "52.0"),
        (["10.00", "20.00", "30.00"], 11.6, "12.00"),
        (["1e3", "2e3", "5e3"], 1200.4, "1200"),
        ([34.0, 2.0, 30.0], 51.8, 52.0),
        ([34, 2.0, 30], 51.8, 52.0),
        ([0.5, 1.5, 2.5], 1.23456, 1.23456),
        (["1e-3", "2e-3", "5e-3"], 0.00423, "0.004"),
        (["1.5e-25", "2.25e-25", "4e-25"], 3.1234e-25, "3.12e-25"),
        ([1, 2, "NA", 30], 1.6, 2),
        ([1, 2.5, "", 30], 1.6, 1.6),
        ([1, 2.25, "3"], 1.678, "1.68"),
    ],
)
def test_what_is_filled_in_has_the_type_and_decimals_of_its_column(cells: list[Any], value: float, cell: Any):
    written = column_of("x", cells).cell(value)
    assert written == cell
    assert type(written) is type(cell)


def test_csv_keeps_the_very_text_of_every_other_cell(tmp_path: Path):
    """Quotes, blanks, trailing zeros, and a date."""
    source = tmp_path / "t.csv"
    source.write_text('a,b,"c, d"\n1.500, x ,"say ""hi"""\n,2020-01-01,\n')
    sheet = read_sheet(source)
    write_sheet(tmp_path / "out.csv", sheet, {"a": {1: "9"}})
    assert (tmp_path / "out.csv").read_text() == 'a,b,"c, d"\n1.500, x ,"say ""hi"""\n9,2020-01-01,\n'


def test_parquet_keeps_types_and_what_is_not_looked_into(tmp_path: Path):
    table = pa.table(
        {
            "f": pa.array([0.1, None, 0.3], pa.float32()),
            "i": pa.array([1, 2, None], pa.int16()),
            "s": pa.array(["a", None, "b"]).dictionary_encode(),
            "d": pa.array([date(2020, 1, 1), None, None]),
            "l": pa.array([[1], None, [2, 3]]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    sheet = read_sheet(tmp_path / "t.parquet")
    write_sheet(
        tmp_path / "o.parquet", sheet, {"f": {1: 0.25}, "i": {2: 7}, "s": {1: "b"}}, [{"i": 5}], {"new": [0] * 4}
    )
    found = pq.read_table(tmp_path / "o.parquet")
    assert found.schema.remove(5).equals(table.schema)
    assert found.slice(0, 3).column("l").combine_chunks().equals(table.column("l").combine_chunks())
    assert found.column("f").to_pylist()[:3] == [table.column("f")[0].as_py(), 0.25, table.column("f")[2].as_py()]
    assert found.column("i").to_pylist() == [1, 2, 7, 5]
    assert found.column("s").to_pylist() == ["a", "b", "b", None]
    assert found.column("d").to_pylist() == [date(2020, 1, 1), None, None, None]
    write_sheet(tmp_path / "o.csv", sheet, {"i": {2: 7}})
    assert (tmp_path / "o.csv").read_text().splitlines()[1] == "0.1,1,a,2020-01-01,[1]"


def test_what_is_not_looked_into_is_passed_with_its_own_gaps(tmp_path: Path):
    """Dates, times, lists, decimals and bytes of a Parquet file are there; they are no gaps."""
    columns = {
        "d": (pa.array([date(2020, 1, 1), None, None]), 2),
        "t": (pa.array([0, None, 1], pa.timestamp("us")), 1),
        "l": (pa.array([[1], [], None]), 1),
        "m": (pa.array([Decimal("1.5"), Decimal("2.5"), Decimal("3.5")]), 0),
        "b": (pa.array([b"", None, b"x"]), 1),
        "c": (pa.array([date(2020, 1, 1), None, date(2020, 1, 1)]).dictionary_encode(), 1),
        "x": (pa.array([1.0, 2.0, 3.0]), 0),
        "n": (pa.nulls(3, pa.date32()), 3),
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({name: array for name, (array, _) in columns.items()}), path)
    prepared = prepare(path, ImputeOptions(category="d"))
    kinds = {"x": "integer", "n": "empty"}
    for column in prepared.columns:
        assert (column.kind, int(column.gaps.sum())) == (kinds.get(column.name, "passed"), columns[column.name][1])
    notes = prepared.summary()["notes"]
    assert "'d' is of the type date32[day], which is neither plain numbers nor text" in notes
    with pytest.raises(DatasetError, match=r"'t' of .* is of the type timestamp\[us\].* cannot be the label"):
        labels_of_rows(prepared.sheet, "t")


def test_text_becomes_numbers_in_parquet(tmp_path: Path, write_csv: WriteTable):
    sheet = read_sheet(write_csv(i=["1", "", "3"], f=["0.5", "1", ""], s=["a", "", "b"], c=["007", "1", "2"]))
    write_sheet(tmp_path / "o.parquet", sheet, {})
    found = pq.read_table(tmp_path / "o.parquet")
    assert [str(f.type) for f in found.schema] == ["int64", "double", "string", "string"]
    assert found.to_pydict()["i"] == [1, None, 3]


def test_names_that_read_like_numbers_stay_text_in_parquet(tmp_path: Path, write_csv: WriteTable):
    """Python reads 2020_01 as 202001, and 2^64 + 1 fits a float alone, which ends in other digits."""
    columns = {
        "period": ["2020_01", "2020_02", ""],
        "sample": ["1.5", "1_11", "2"],
        "iccid": ["89014103211118510720", "", "7"],
        "code": ["-007", "1", "2"],
        "phone": ["+4930123456", "4930123457", ""],
        "number": ["0.5", "89014103211118510720", "-0.5"],
        "change": ["+250000", "-7", "+1"],
        "large": ["+12345678", "-300", "+7"],
    }
    sheet = read_sheet(write_csv(**columns))
    write_sheet(tmp_path / "o.parquet", sheet, {})
    found = pq.read_table(tmp_path / "o.parquet")
    assert [str(f.type) for f in found.schema] == [*["string"] * 5, "double", "int64", "int64"]
    assert column_of("phone", sheet.cells["phone"]).kind == "category"
    assert [column_of(name, sheet.cells[name]).kind for name in ("change", "large")] == ["integer"] * 2
    for name in ("period", "sample", "iccid", "code", "phone"):
        assert found.column(name).to_pylist() == [text or None for text in columns[name]]
    (tmp_path / "t.jsonl").write_text('{"id": 89014103211118510720}\n{"id": null}\n')
    write_sheet(tmp_path / "j.parquet", read_sheet(tmp_path / "t.jsonl"), {})
    assert pq.read_table(tmp_path / "j.parquet").to_pydict() == {"id": ["89014103211118510720", None]}


def test_json_lines(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text('{"a": 1, "b": "x"}\n{"b": "y"}\n')
    sheet = read_sheet(tmp_path / "t.jsonl")
    write_sheet(tmp_path / "o.jsonl", sheet, {"a": {1: 2}})
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [
        {"a": 1, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip


def test_json_lines_hold_nothing_that_is_not_json(tmp_path: Path):
    """JSON has neither NaN nor Infinity; a missing number is null, and an infinite one its text, as in CSV."""
    infinite, unknown = float("inf"), float("nan")
    table = pa.table({"a": [infinite, unknown, 0.5], "l": [[1.0, unknown], [-infinite], None]})
    pq.write_table(table, tmp_path / "t.parquet")
    write_sheet(tmp_path / "o.jsonl", read_sheet(tmp_path / "t.parquet"), {}, added={"s": [unknown, 1.0, None]})
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    assert lines[0] == '{"a": "inf", "l": [1.0, null], "s": null}'
    assert lines[1] == '{"a": null, "l": ["-inf"], "s": 1.0}'
    assert column_of("a", read_sheet(tmp_path / "o.jsonl").cells["a"]).gaps.tolist() == [False, True, False]


def test_a_row_without_any_value_is_a_row(tmp_path: Path):
    """pandas writes a row of NaN as separators alone, and as quotes where there is one column; both come back."""
    for text in ("a,b\n1,2\n,\n3,4\n", 'a\n1\n""\n3\n'):
        (tmp_path / "t.csv").write_text(text)
        sheet = read_sheet(tmp_path / "t.csv")
        assert sheet.cells["a"] == ["1", "", "3"]
        assert sheet.notes == ("1 row(s) without any value are kept",)
        write_sheet(tmp_path / "o.csv", sheet, {})
        assert (tmp_path / "o.csv").read_text() == text


def test_empty_lines_are_counted(tmp_path: Path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n\n3,4\n")
    sheet = read_sheet(tmp_path / "t.csv")
    assert len(sheet) == 2
    assert sheet.notes == ("1 empty line(s) were left out",)


def test_what_is_no_table(tmp_path: Path):
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    (tmp_path / "no_rows.csv").write_text("a,b\n")
    (tmp_path / "t.xlsx").touch()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "twice.parquet")
    for name, message in (
        ("twice.csv", "two columns named 'a'"), ("twice.parquet", "two columns named 'a'"), ("no_rows.csv", "no rows"),
        ("t.xlsx", "not a table"), ("missing.csv", "cannot read"),
    ):  # fmt: skip
        with pytest.raises(DatasetError, match=message):
            read_sheet(tmp_path / name)


def test_nothing_is_replaced_unasked(tmp_path: Path):
    """The input never, even through a link; anything else with --fresh alone."""
    source = tmp_path / "t.csv"
    source.write_text("a\n1\n")
    assert output_path(source, None, "imputed", False) == (
        tmp_path / "t-imputed.csv", tmp_path / "t-imputed-uncertainty.csv",
    )  # fmt: skip
    (tmp_path / "link.csv").symlink_to(source)
    for out in (source, tmp_path / "link.csv"):
        with pytest.raises(OutputError, match="the input"):
            output_path(source, out, "imputed", True)
    (tmp_path / "o-uncertainty.csv").touch()
    with pytest.raises(OutputError, match="exists"):
        output_path(source, tmp_path / "o.csv", "imputed", False)
    assert output_path(source, tmp_path / "o.csv", "imputed", True)[0] == tmp_path / "o.csv"
    with pytest.raises(SettingsError, match="takes a table"):
        output_path(source, tmp_path / "o.txt", "imputed", False)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match="folder"):
        output_path(source, tmp_path / "folder.csv", "imputed", True)
