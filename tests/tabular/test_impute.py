"""Missing cells filled in, where the answer is known."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import typicality
from tests.tabular.conftest import WriteTable, cells_of, correlated, numbers
from typicality.errors import DatasetError, SettingsError
from typicality.tabular import imputation_benchmark, rivals
from typicality.tabular.columns import column_of
from typicality.tabular.encoding import fit_encoding, number_code
from typicality.tabular.imputation_benchmark import coverage, errors, evaluate_imputation, hidden_cells, label_judge
from typicality.tabular.impute import ImputeOptions, fill, summarised
from typicality.tabular.preparing import prepare

QUICK = ImputeOptions(steps=40)


def test_numbers_are_coded_by_rank_and_come_back():
    """Of four values the ranks' middles are 1/8 ... 7/8; ties share one; nothing leaves the observed range."""
    code = number_code(np.array([1.0, 10.0, 100.0, 1000.0]))
    assert code.scores.tolist() == pytest.approx([-1.1503, -0.3186, 0.3186, 1.1503], abs=1e-4)
    assert code.decode(code.encode(np.array([1.0, 10.0, 1000.0]))).tolist() == [1, 10, 1000]
    assert code.decode(np.array([[-9.0], [9.0]])).tolist() == [1, 1000]
    assert number_code(np.array([5.0, 5.0, 5.0, 8.0])).scores[0] == pytest.approx(-0.3186, abs=1e-4)


def test_whole_numbers_and_categories_come_back():
    columns = (column_of("i", [1, 2, 3, 9]), column_of("c", ["a", "b", "a", "c"]))
    values = np.stack([column.values for column in columns], axis=1)
    encoding = fit_encoding(columns, values)
    vectors, known = encoding.encode(values)
    assert vectors.shape == known.shape == (4, 4)
    assert encoding.owner.tolist() == [0, 1, 1, 1]
    assert encoding.decode(vectors).tolist() == values.tolist()
    assert encoding.decode(vectors + 0.05)[:, 0].tolist() == [1, 2, 3, 9]


def test_a_gaussian_is_filled_with_its_conditional_mean_and_deviation():
    """Means 10 and -5, deviations 2 and 3, correlation 0.9: E[x2 | x1] = -5 + 0.9 * 3 / 2 (x1 - 10), and the standard
    deviation of what is not known is 3 sqrt(1 - 0.81) = 1.31. Without x1 it would be 3.
    """
    values = correlated(600, 0.9)
    hidden = np.zeros_like(values, dtype=bool)
    hidden[::5, 1] = True
    found = fill(numbers(values), np.where(hidden, np.nan, values), QUICK)
    expected = -5 + 1.35 * (values[::5, 0] - 10)
    assert np.sqrt(np.mean((found.values[::5, 1] - expected) ** 2)) < 0.45
    assert np.median(found.spread[::5, 1]) == pytest.approx(1.31, abs=0.25)
    assert np.isnan(found.spread[~hidden]).all()


@pytest.mark.slow
def test_the_network_learns_what_no_line_can():
    """y = |x| has no correlation with x, so that the Gaussian alone can but say the mean (error 1); the network halves
    that at least."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=800)
    values = np.stack([x, np.abs(x) + 0.05 * rng.normal(size=800)], axis=1)
    hidden = np.zeros_like(values, dtype=bool)
    hidden[::6, 1] = True
    found = fill(numbers(values), np.where(hidden, np.nan, values), ImputeOptions(steps=250))
    assert found.record["validation_loss"] < found.record["gaussian_loss"]
    assert errors(numbers(values), values, found.values, hidden)["nrmse"] < 0.5


def test_only_what_is_known_is_read():
    """Two tables that differ in hidden cells alone are filled alike, to the last bit; known cells stay."""
    values = correlated(120, 0.5)
    hidden = np.zeros_like(values, dtype=bool)
    hidden[::4, 0] = hidden[1::4, 1] = True
    other = np.where(hidden, 1e3, values)
    first, second = (fill(numbers(values), np.where(hidden, np.nan, v), QUICK) for v in (values, other))
    assert (first.values == second.values).all()
    assert (first.values[~hidden] == values[~hidden]).all()
    assert not np.isnan(first.values).any()
    again = fill(numbers(values), np.where(hidden, np.nan, values), ImputeOptions(steps=40, seed=1))
    assert (again.values[hidden] != first.values[hidden]).any()


def test_a_category_that_another_column_determines_is_recovered(tmp_path: Path, write_csv: WriteTable):
    """The colour is that of the kind; so is the number, 10 times its place."""
    rng = np.random.default_rng(0)
    place = rng.integers(3, size=240)
    kind, colour = np.array(["cat", "dog", "owl"])[place], np.array(["red", "blue", "green"])[place]
    shown = [c if i % 6 else "" for i, c in enumerate(colour)]
    table = write_csv(kind=kind, colour=shown, size=[f"{10 * p + rng.normal():.1f}" for p in place])
    found = typicality.tabular_impute(table, steps=60)
    cells = cells_of(found.path)
    assert np.mean(np.array(cells["colour"]) == colour) > 0.99
    probability = cells_of(found.uncertainty)["colour"]
    assert all((p == "") == bool(i % 6) for i, p in enumerate(probability))
    assert np.mean([float(p) for p in probability[::6]]) > 0.9


def test_the_table_keeps_its_columns_types_and_known_cells(tmp_path: Path, write_csv: WriteTable):
    """Also of columns that are constant, empty, dates, names or infinite somewhere; the label is never filled."""
    n = 60
    values = correlated(n, 0.7)
    columns = {
        "day": [f"2020-01-{i % 28 + 1:02}" for i in range(n)],
        "a": [f"{v:.2f}" if i % 5 else "" for i, v in enumerate(values[:, 0])],
        "b": ["inf" if i == 7 else f"{v:.0f}" if i % 7 != 3 else "NA" for i, v in enumerate(values[:, 1])],
        "same": ["x" if i % 2 else "" for i in range(n)],
        "none": [""] * n,
        "name": [f"n{i}" if i else "" for i in range(n)],
        "y": ["yes" if i % 3 else "no" if i % 2 else "" for i in range(n)],
    }
    table = write_csv(**columns)
    found = typicality.tabular_impute(table, "y", steps=20, samples=4)
    cells = cells_of(found.path)
    assert list(cells) == list(columns)
    for name in ("day", "none", "name", "y"):
        assert cells[name] == columns[name]
    for name in ("a", "b", "same"):
        assert all(new == old for new, old in zip(cells[name], columns[name], strict=True) if old not in ("", "NA"))
        assert not {"", "NA"} & set(cells[name])
    assert cells["b"][7] == "inf"
    assert set(cells["same"]) == {"x"}
    assert min(map(float, cells["a"])) >= min(float(v) for v in columns["a"] if v)
    assert all(len(v.partition(".")[2]) <= 2 for v in cells["a"])
    assert all(float(v).is_integer() for i, v in enumerate(cells["b"]) if i != 7)
    assert found.summary["left_missing"] == {"none": n, "name": 1, "y": sum(v == "" for v in columns["y"])}
    assert any("infinite" in note for note in found.summary["notes"])


def test_parquet_and_the_same_seed_gives_the_same_file(tmp_path: Path, write_csv: WriteTable):
    values = correlated(50, 0.7)
    table = write_csv(a=[f"{v:.2f}" if i % 5 else "" for i, v in enumerate(values[:, 0])], b=values[:, 1].round())
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        typicality.tabular_impute(table, out=path, steps=20, samples=4, seed=seed)
    first, second, third = (pq.read_table(path) for path in paths)
    assert first.equals(second)
    assert not first.equals(third)
    assert first.column("a").null_count == 0
    assert pq.read_table(tmp_path / "0-uncertainty.parquet").column("a").null_count == 40


def test_one_missing_text_fills_no_other_cell(write_csv: WriteTable):
    """Of yes, no and unknown the last is missing: no, which is a part of it, stays."""
    answers = ["yes", "no", "unknown", "no", "yes"] * 4
    table = write_csv(answer=answers, x=[f"{1.5 * i % 7}" for i in range(20)])
    found = typicality.tabular_impute(table, missing="unknown", steps=5, samples=4)
    filled = cells_of(found.path)["answer"]
    assert [new for new, old in zip(filled, answers, strict=True) if old != "unknown"] == ["yes", "no", "no", "yes"] * 4
    assert found.summary["filled_by_column"] == {"answer": 4}


def test_dates_of_a_parquet_file_are_left_and_not_called_missing(tmp_path: Path):
    table = pa.table(
        {"day": pa.array([None, *[date(2020, 1, 1)] * 11]), "x": [float(i) for i in range(12)], "y": [None, *range(11)]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = typicality.tabular_impute(tmp_path / "t.parquet", steps=5, samples=4)
    assert found.summary["left_missing"] == {"day": 1}
    assert found.summary["kinds"]["passed"] == 1
    assert pq.read_table(found.path).column("day").equals(table.column("day"))


def test_numbers_of_any_size_are_filled_within_their_range(write_csv: WriteTable):
    """1e-25 has more decimals than a float has digits, and 5e-7 +- 1e-7 an uncertainty below 1e-6."""
    values = correlated(40, 0.9)
    columns = {
        "a": [f"{v:.3f}" for v in values[:, 0]],
        "tiny": ["" if i % 6 == 0 else f"{1e-25 * (11 + v):.3e}" for i, v in enumerate(values[:, 0])],
        "small": ["" if i % 6 == 1 else f"{5e-7 + 1e-8 * v:.3e}" for i, v in enumerate(values[:, 1])],
    }
    found = typicality.tabular_impute(write_csv(**columns), steps=5, samples=4)
    cells, spread = cells_of(found.path), cells_of(found.uncertainty)
    for name in ("tiny", "small"):
        known = [float(v) for v in columns[name] if v]
        assert all(min(known) <= float(v) <= max(known) for v in cells[name])
        uncertain = [float(s) for s in spread[name] if s]
        assert len(uncertain) == 40 - len(known)
        assert 0 < np.median(uncertain) < max(uncertain) < max(known) - min(known)


def test_long_ids_are_left(write_csv: WriteTable):
    ids = [str(8901410321111851072 + 11 * i) if i != 5 else "" for i in range(20)]
    table = write_csv(a=[f"{i / 7:.3f}" if i != 3 else "" for i in range(20)], iccid=ids)
    found = typicality.tabular_impute(table, steps=5, samples=4)
    assert cells_of(found.path)["iccid"] == ids
    assert found.summary["left_missing"] == {"iccid": 1}


def test_numbers_among_other_cells_of_json_lines(tmp_path: Path):
    """Whole numbers with NA and empty texts between: the gaps become whole numbers, not texts."""
    rows = [{"a": i / 4, "k": ("NA" if i % 2 else "") if i % 5 == 0 else i % 7} for i in range(30)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = typicality.tabular_impute(tmp_path / "t.jsonl", steps=5, samples=4)
    written = [json.loads(line)["k"] for line in found.path.read_text().splitlines()]
    assert all(type(k) is int and 0 <= k <= 6 for k in written)
    assert found.summary["filled_by_column"] == {"k": 6}


def test_a_table_without_gaps_is_written_as_it_was(write_csv: WriteTable):
    table = write_csv(a=["1", "2", "3"], b=["x", "y", "x"])
    found = typicality.tabular_impute(table)
    assert found.path.read_text() == table.read_text()
    assert found.summary["filled"] == 0


def test_samples_are_summarised():
    """Of 2, 4, 6 the mean is 4 and the deviation 2; two of three samples say b."""
    columns = (column_of("x", [1.0, 2.0, 4.0]), column_of("c", ["a", "b", "a"]))
    estimate, spread = summarised(np.array([[[2.0, 1], [4.0, 1], [6.0, 0]]]), columns)
    assert estimate.tolist() == [[4.0, 1.0]]
    assert spread[0].tolist() == pytest.approx([2.0, 2 / 3])


def test_errors_are_in_units_of_the_column():
    """A number that is one standard deviation off, and another that is right: root of 1/2. One of two categories."""
    columns = (column_of("x", [0.0, 10.0, 5.0]), column_of("c", ["a", "b", "a"]))
    truth = np.array([[0.0, 0], [10.0, 1], [5.0, 0]])
    made = truth + np.array([[truth[:, 0].std(), 1], [0, 0], [99, 99]])
    hidden = np.array([[True, True], [True, True], [False, False]])
    assert errors(columns, truth, made, hidden) == pytest.approx({"nrmse": 0.5**0.5, "error_rate": 0.5})


def test_coverage_of_small_numbers():
    """Off by two deviations is not covered, whatever the unit; what differs by rounding alone is."""
    truth = np.array([[1e-20], [2e-20], [3.0]])
    made = truth + np.array([[2e-21], [1e-21], [1e-15]])
    spread = np.array([[1e-21], [1e-21], [0.0]])
    found = coverage(numbers(truth), truth, made, spread, np.ones((3, 1), dtype=bool))
    assert found["covered"] == pytest.approx(2 / 3)


def test_a_label_whose_numbers_are_names_is_judged_as_such(write_csv: WriteTable, monkeypatch):
    """Of 21 different numbers the forest predicts the value, and of as many names the name."""
    monkeypatch.setattr(imputation_benchmark, "TREES", 2)
    y = [str(i % 21) for i in range(63)]
    table = write_csv(a=[str(i) for i in range(63)], y=y)
    for category, measure in (((), "label_r2"), (("y",), "label_accuracy")):
        options = ImputeOptions(label="y", category=category)
        found = prepare(table, options)
        assert list(label_judge(found, options)(found.values, 0)) == [measure]


def test_a_share_of_the_known_cells_is_hidden():
    values = np.where(np.random.default_rng(1).random((500, 3)) < 0.2, np.nan, 1.0)
    hidden = hidden_cells(values, 0.3, seed=0)
    assert not hidden[np.isnan(values)].any()
    assert hidden[~np.isnan(values)].mean() == pytest.approx(0.3, abs=0.04)
    assert (hidden_cells(values[:8], 0.9, seed=0).sum(0) <= 3).all()
    with pytest.raises(DatasetError, match="too few known cells"):
        hidden_cells(values[:4], 0.5, seed=0)


@pytest.mark.parametrize("name", ["knn", "mice", "missforest"])
def test_the_rivals_are_what_they_should_be(name: str, monkeypatch):
    """One choice is wherever x > 0: every rival but the mode finds that, and none touches a known cell."""
    monkeypatch.setattr(rivals, "TREES", 10)
    x = np.random.default_rng(0).normal(size=200)
    columns = (column_of("x", x.tolist()), column_of("c", ["b", *np.where(x[1:] > 0, "a", "b").tolist()]))
    values = np.stack([columns[0].values, columns[1].values], axis=1)
    hidden = np.zeros_like(values, dtype=bool)
    hidden[3::5, 1] = hidden[4::5, 0] = True
    made = rivals.IMPUTERS[name](columns, np.where(hidden, np.nan, values), 0)
    found = errors(columns, values, made, hidden)
    assert found["error_rate"] < 0.1
    assert found["nrmse"] < 0.8
    assert (made[~hidden] == values[~hidden]).all()


def test_the_benchmark_compares_with_what_is_usual(write_csv: WriteTable, monkeypatch):
    """x2 is nearly x1: who looks at x1 is several times better than the mean, whose error is 1 by definition."""
    for module in (rivals, imputation_benchmark):
        monkeypatch.setattr(module, "TREES", 5)
    values = correlated(90, 0.99)
    table = write_csv(
        a=values[:, 0].round(3), b=values[:, 1].round(3), y=["u" if v > 10 else "d" for v in values[:, 0]]
    )
    found = evaluate_imputation(table, ImputeOptions(label="y", steps=20, samples=4), hide=0.2, repeats=2)
    methods = found["methods"]
    assert set(methods) == {"ours", "mean", "knn", "mice", "missforest"}
    assert methods["mean"]["nrmse"] == pytest.approx(1, abs=0.2)
    for name in ("ours", "mice"):
        assert methods[name]["nrmse"] < 0.7
    assert found["differences"]["mean"]["nrmse"] == pytest.approx(
        methods["ours"]["nrmse"] - methods["mean"]["nrmse"], abs=1e-3
    )
    assert 0.5 < methods["ours"]["label_accuracy"] <= 1
    assert found["nothing_hidden"]["label_accuracy"] > 0.9


def test_what_cannot_be_imputed(write_csv: WriteTable):
    with pytest.raises(DatasetError, match="did you mean 'height'"):
        typicality.tabular_impute(write_csv(height=["1", "2", "3"]), "heigth")
    with pytest.raises(DatasetError, match="no column to learn from"):
        typicality.tabular_impute(write_csv(a=["1", "1"], b=["", ""]))
    with pytest.raises(SettingsError, match="unknown option 'stepps'"):
        typicality.tabular_impute("t.csv", stepps=3)
    with pytest.raises(SettingsError, match="--samples"):
        typicality.tabular_impute("t.csv", samples=1)
    with pytest.raises(SettingsError, match="--hide"):
        typicality.evaluate_tabular_impute("t.csv", hide=1.5)
