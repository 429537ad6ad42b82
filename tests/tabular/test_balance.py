"""Rows added to rare labels: that they follow the label's distribution, that typicality tells labels apart, and that
nothing of the test part is ever seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import typicality
from tests.tabular.conftest import WriteTable, cells_of, correlated, numbers
from typicality.errors import DatasetError, SettingsError
from typicality.tabular import balance_benchmark
from typicality.tabular.balance import BalanceOptions, Generator, fit_generator, new_rows, plan
from typicality.tabular.columns import column_of
from typicality.tabular.judging import averaged, differences, standard_error
from typicality.tabular.preparing import Labels
from typicality.tabular.rivals import oversampled, smote

MOVED = np.array([8.0, 9.0])


@pytest.fixture(scope="module")
def two_labels() -> tuple[np.ndarray, np.ndarray, Generator]:
    """300 rows around (10, -5), 60 rare ones moved by four and three standard deviations, and a generator of them."""
    values = np.concatenate([correlated(300, 0.8), correlated(60, 0.8, seed=1) + MOVED])
    codes = np.array([0] * 300 + [1] * 60)
    options = BalanceOptions(label="y", steps=60, draws=16)
    return values, codes, fit_generator(numbers(values), values, codes, 2, options)


def test_new_rows_follow_the_distribution_of_the_label(two_labels):
    """Mean (18, 4), standard deviations 2 and 3, correlation 0.8; means of 60 rows are known to 0.26 and 0.39."""
    _, _, generator = two_labels
    rows = generator.draw(1, 0, 600)
    assert rows.mean(0).tolist() == pytest.approx([18, 4], abs=0.8)
    assert rows.std(0).tolist() == pytest.approx([2, 3], rel=0.3)
    assert np.corrcoef(rows.T)[0, 1] == pytest.approx(0.8, abs=0.12)
    assert generator.draw(0, 0, 600).mean(0).tolist() == pytest.approx([10, -5], abs=0.6)


def test_a_row_is_the_same_whatever_is_drawn_with_it(two_labels):
    _, _, generator = two_labels
    assert generator.draw(1, 7, 1)[0].tolist() == pytest.approx(generator.draw(1, 0, 20)[7].tolist(), rel=1e-4)


def test_typicality_tells_labels_apart(two_labels):
    """Its own label helps to denoise a row; the other one does harm. Rare rows gain most."""
    values, codes, generator = two_labels
    as_rare, as_common = generator.typicality(values, 1), generator.typicality(values, 0)
    assert (as_rare[codes == 1] > as_common[codes == 1]).mean() > 0.95
    assert (as_common[codes == 0] > as_rare[codes == 0]).mean() > 0.85
    assert as_rare[codes == 1].mean() > 0 > as_rare[codes == 0].mean()


def test_a_missing_cell_does_not_count(two_labels):
    """The other cell decides alone; a row of which nothing is known is neither typical nor not."""
    _, _, generator = two_labels
    found = generator.typicality(np.array([[18.0, np.nan], [10.0, np.nan], [np.nan, np.nan]]), 1)
    assert found[0] > 0 > found[1]
    assert found[2] == 0


class Replay(Generator):
    """Draws given rows, whose typicality is their first value."""

    def draw(self, label: int, first: int, count: int) -> np.ndarray:
        return np.array([[i % 10, 100 + i] for i in range(first, first + count)], dtype=float)

    def typicality(self, values: np.ndarray, label: int) -> np.ndarray:
        return values[:, 0]


def test_what_is_less_typical_than_the_real_rows_or_a_copy_is_dropped(two_labels):
    """Drawn are 0 1 2 ... 9 0 1 ... The real rows' 5% quantile of 4, 5, ... 24 is 5; (7, 107) is a real row.

    Of 0 ... 9 the five below 5 are dropped, 7 is a copy; 5, 6, 8, 9 stay, then the next round's 5.
    """
    columns = numbers(np.array([[0.0, 1], [2, 3], [4, 5]]))
    replay = Replay(columns, two_labels[2].encoding, two_labels[2].denoiser, BalanceOptions(label="y"))
    real = np.array([[float(v), 0.0] for v in range(4, 25)])
    real[3] = [7, 107]
    made = new_rows(replay, real, 1, 5)
    assert made.threshold == 5
    assert made.values[:, 0].tolist() == [5, 6, 8, 9, 5]
    assert (made.drawn, made.atypical, made.copies) == (16, 10, 1)


def test_rows_are_added_and_marked(tmp_path: Path, write_csv: WriteTable):
    values = np.concatenate([correlated(60, 0.8), correlated(12, 0.8, seed=1) + MOVED])
    names = ["healthy"] * 60 + ["ill"] * 11 + [""]
    days = ["2020-01-01"] * 72
    table = write_csv(day=days, a=values[:, 0].round(2), b=values[:, 1].round(2), k=["1"] * 72, state=names)
    found = typicality.tabular_balance(table, "state", ratio=0.5, steps=20, draws=8)
    cells = cells_of(found.path)
    assert list(cells) == ["day", "a", "b", "k", "state", "synthetic", "typicality"]
    source = cells_of(table)
    assert all(cells[name][:72] == source[name] for name in source)
    assert cells["synthetic"] == ["false"] * 72 + ["true"] * 19
    assert set(cells["state"][72:]) == {"ill"}
    assert set(cells["k"][72:]) == {"1"}
    assert set(cells["day"][72:]) == {""}
    assert cells["typicality"][:72] == [""] * 72
    least = found.summary["labels"]["ill"]["least_typicality"]
    assert all(float(score) >= least - 1e-6 for score in cells["typicality"][72:])
    assert found.summary["labels"]["ill"]["added"] == 19
    again = typicality.tabular_balance(table, "state", ratio=0.5, steps=20, draws=8, out=tmp_path / "again.csv")
    assert again.path.read_text() == found.path.read_text()


def test_no_row_of_the_test_part_is_ever_seen(write_csv: WriteTable, monkeypatch):
    """What the generator, the rivals and the judges are fitted on is the training part: its rows, and no other.

    Every row has a number of its own in `a`; the test rows of a split are those that judge.
    """
    monkeypatch.setattr(balance_benchmark, "TREES", 10)
    rng = np.random.default_rng(0)
    a = rng.permutation(80) / 4
    table = write_csv(a=a, b=(a + rng.normal(size=80)).round(3), y=["r" if i % 5 == 0 else "c" for i in range(80)])
    trained: list[set[float]] = []
    judged: list[set[float]] = []
    real = balance_benchmark.fit_generator
    real_matrix = balance_benchmark.matrix_of

    def fitting(columns, values, *rest):
        trained.append(set(values[:, 0]))
        return real(columns, values, *rest)

    def matrix(columns, values, fitted=None):
        if fitted is not None and len(values) == 24:
            judged.append(set(values[:, 0]))
            assert set(fitted[:, 0]) == trained[-1]
        return real_matrix(columns, values, fitted)

    monkeypatch.setattr(balance_benchmark, "fit_generator", fitting)
    monkeypatch.setattr(balance_benchmark, "matrix_of", matrix)
    options = BalanceOptions(label="y", steps=10, draws=4)
    found = balance_benchmark.evaluate_balance(table, options, repeats=2)
    assert len(trained) == len(judged) == 2
    for seen, held_out in zip(trained, judged, strict=True):
        assert len(seen) == 56
        assert not seen & held_out
    forest = found["random_forest"]
    assert list(forest) == ["ours", "nothing", "class_weights", "oversampling", "smote"]
    assert all(0 <= row[name] <= 1 for row in forest.values() for name in ("precision", "recall", "f1", "auprc"))


def test_a_split_in_which_no_label_is_rare_is_measured(write_csv: WriteTable, monkeypatch):
    """At a half of 21 b, 10 a lack one row; of the 21 rows to learn from 7 are a and 14 b, which is a half already.

    Nothing is added there, and all methods but the weights are the same.
    """
    monkeypatch.setattr(balance_benchmark, "TREES", 3)
    table = write_csv(x=[i * 7 % 31 / 4 for i in range(31)], y=["a"] * 10 + ["b"] * 21)
    options = BalanceOptions(label="y", ratio=0.5, steps=2, draws=2)
    found = balance_benchmark.evaluate_balance(table, options, repeats=2)
    assert found["rare"] == ["a"]
    assert found["dropped"] == {"drawn": 0, "atypical": 0, "copies": 0, "kept": 0}
    for of_judge in (found[name] for name in ("random_forest", "xgboost") if name in found):
        assert of_judge["ours"] == of_judge["oversampling"] == of_judge["smote"] == of_judge["nothing"]


def test_a_label_that_is_rare_in_a_split_alone_is_given_no_row():
    """At a half of 22 c, 5 a lack 6 and 10 b lack one; the whole table has enough b, which only its split lacks."""
    codes = np.array([0] * 5 + [1] * 10 + [2] * 22)
    values = correlated(37, 0.5)
    labels, options = Labels(("a", "b", "c"), codes, ()), BalanceOptions(label="y", ratio=0.5, steps=2, draws=2)
    sets = balance_benchmark.training_sets(
        numbers(values), values, labels, [0], options, dict.fromkeys(("drawn", "atypical", "copies", "kept"), 0)
    )
    for method in ("oversampling", "smote"):
        assert np.bincount(sets[method][1]).tolist() == [11, 10, 22]
    assert np.bincount(sets["ours"][1])[1:].tolist() == [10, 22]


def test_a_category_of_which_a_split_learns_nothing_stands_in_with_zeros():
    """Its indicators are known in the judged row alone; where one is missing there it is no choice at all."""
    columns = (*numbers(np.array([[0.0], [2], [4]])), column_of("c", ["u", "v", ""]))
    training = np.array([[0.0, np.nan], [2.0, np.nan]])
    matrix = np.array([[np.nan, 1.0, 0.0], [0.5, np.nan, np.nan]])
    found = balance_benchmark.stand_in(matrix, training, columns)
    assert found.tolist() == [[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]]


def test_measures_of_the_rare_label():
    """Said rare: rows 0 and 1, of which 0 is; row 2 is missed. Ranked by probability the hits are 1st and 3rd:
    (1 / 1 + 2 / 3) / 2."""
    probabilities = np.array([[0.1, 0.9], [0.4, 0.6], [0.7, 0.3], [0.9, 0.1]])
    found = balance_benchmark.measures(probabilities, np.array([1, 0, 1, 0]), [1])
    assert found == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "auprc": 5 / 6})


def test_standard_errors_and_paired_differences():
    """Values 1, 3 have a standard error of sqrt(2 / 2) = 1; splits that overlap by 1/2: sqrt(2 (1/2 + 1/2))."""
    assert standard_error([1.0, 3.0]) == pytest.approx(1)
    assert standard_error([1.0, 3.0], overlap=0.5) == pytest.approx(2**0.5)
    repeats = {"ours": [{"f1": 0.5}, {"f1": 0.7}], "smote": [{"f1": 0.4}, {"f1": 0.6}]}
    assert averaged(repeats)["ours"] == {"f1": 0.6, "f1_se": 0.1}
    assert differences(repeats) == {"smote": {"f1": 0.1, "f1_se": 0.0}}


def test_smote_stays_between_two_rows_of_the_label():
    """On a line the new rows lie on it, within the range; indicators stay whole."""
    x = np.array([[0.0, 0, 1, 0], [1, 2, 1, 0], [2, 4, 0, 1], [50, 0, 0, 1]])
    made, labels = smote(x, np.array([1, 1, 1, 0]), {1: 40}, np.random.default_rng(0), [slice(2, 4)])
    assert made[:, 1].tolist() == pytest.approx((2 * made[:, 0]).tolist())
    assert made[:, 0].min() >= 0
    assert made[:, 0].max() <= 2
    assert set(map(tuple, made[:, 2:])) == {(0, 1), (1, 0)}
    assert set(labels) == {1}
    assert len(set(made[:, 0])) > 20
    copies, _ = oversampled(x, np.array([1, 1, 1, 0]), {1: 40}, np.random.default_rng(0))
    assert set(map(tuple, copies)) == set(map(tuple, x[:3]))


def test_labels_that_are_given_no_row_are_named(write_csv: WriteTable):
    """Of 40 c, 10 rare and 3 fraud the last are too few to learn from; c has all that it is asked for."""
    y = ["c"] * 40 + ["rare"] * 10 + ["fraud"] * 3
    table = write_csv(a=[f"{i * 7 % 53}" for i in range(53)], y=y)
    found = plan(table, None, BalanceOptions(label="y"), fresh=False)[0].summary()
    assert found["notes"][0] == "label 'fraud' has 3 row(s), and is passed over: 4 at least are needed"
    assert found["notes"] == typicality.tabular_balance(table, "y", steps=2, draws=2).summary["notes"]
    named = BalanceOptions(label="y", rare=("rare", "c"))
    for notes in (
        plan(table, None, named, fresh=True)[0].summary()["notes"],
        balance_benchmark.plan(table, named, 2, 0.3)[0].summary()["notes"],
    ):
        assert notes[0] == "label 'c' has 40 rows already, and --ratio 1 asks for 40"
        assert "fraud" not in str(notes)
    for rare, ratio, reason in (((), 0.25, "'fraud' has 3 row"), ("c", 1.0, "'c' has 40 rows already")):
        with pytest.raises(DatasetError, match=f"no label is to be given more rows.*; label {reason}"):
            typicality.tabular_balance(table, "y", rare=rare, ratio=ratio, fresh=True)


@pytest.mark.parametrize(
    ("counts", "test", "message"),
    [
        ((57, 3), 0.01, "59 to learn from and 1 to judge: each part needs a row of every one of 2 labels"),
        ((57, 8), 0.99, "0 to learn from and 65 to judge"),
        ((192, 8), 0.05, r"label 'l1' has too few rows \(8\).* leave as few as 8 to learn from and 0 to judge"),
        ((40, 5), 0.5, r"label 'l1' has too few rows \(5\).* leave as few as 2 to learn from and 3 to judge"),
        ((40, 1), 0.3, "label 'l1' has one row"),
    ],
)
def test_splits_that_leave_a_rare_label_no_rows_are_refused(counts: tuple[int, ...], test: float, message: str):
    """Without a row to judge every measure of a label is 0; with fewer than four nothing is learned."""
    codes = np.repeat(np.arange(len(counts)), counts)
    labels = Labels(tuple(f"l{i}" for i in range(len(counts))), codes, ())
    with pytest.raises(DatasetError, match=message):
        balance_benchmark.splits_of(labels, [1], 3, test, 0)


def test_splits_are_of_the_rows_that_have_a_label():
    """A third of 12 and of 6 rows judges; rows without a label are not counted."""
    codes = np.array([0] * 12 + [-1] * 5 + [1] * 6)
    splits = balance_benchmark.splits_of(Labels(("a", "b"), codes, ()), [1], 3, 1 / 3, 0)
    assert len(splits) == 3
    for train, judged in splits:
        assert sorted([*train, *judged]) == list(range(18))
        assert sum(judged >= 12) == 2
        assert len(judged) == 6


def test_what_cannot_be_balanced(write_csv: WriteTable):
    a = [str(i) for i in range(20)]
    table = write_csv(a=a, y=["u"] * 12 + ["v"] * 8, one=["u"] * 20, few=["u"] * 18 + ["v"] * 2, even=["u", "v"] * 10)
    for label, options, message in (
        ("why", {}, "no column 'why'"),
        ("one", {}, "at least two"),
        ("few", {"rare": ["v"]}, "4 at least"),
        ("few", {}, "no label is to be given more rows"),
        ("even", {}, "no label is to be given more rows"),
        ("y", {"rare": ["w"]}, "no label 'w'"),
    ):
        with pytest.raises(DatasetError, match=message):
            typicality.tabular_balance(table, label, **options)
    with pytest.raises(SettingsError, match="--ratio"):
        typicality.tabular_balance(table, "y", ratio=2)
    table = write_csv(a=a, y=["u"] * 12 + ["v"] * 8, synthetic=a)
    with pytest.raises(DatasetError, match="has a column 'synthetic'"):
        typicality.tabular_balance(table, "y")
