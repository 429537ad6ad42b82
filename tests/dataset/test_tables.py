"""Tables of images: what is a row of one."""

from __future__ import annotations

from pathlib import Path

from typicality.dataset.tables import open_table, table_source


def test_a_line_of_separators_alone_names_no_image(tmp_path: Path):
    """Spreadsheets leave such lines behind a table. They are rows of a table, but no images that are missing; a row
    with a label and without a file is one."""
    path = tmp_path / "t.csv"
    path.write_text("file_name,label\na.png,x\n,\n\n,y\n,\n")
    assert [values["label"] for values, _, _ in open_table(path).cells()] == ["x", "", "y", ""]
    assert [row.values["label"] for row in table_source(path, None).rows()] == ["x", "y"]
