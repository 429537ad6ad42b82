"""`tabular impute` and `tabular balance` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from typicality.cli.app import run
from typicality.tabular import balance_benchmark, imputation_benchmark, rivals

ROWS = [
    "a,b,y",
    *(f"{i / 4},{'' if i % 6 == 1 else i / 2 + i % 3},{'rare' if i % 5 == 0 else 'common'}" for i in range(60)),
]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command beside the table t.csv: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("\n".join(ROWS) + "\n")

    def typical(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return run([str(word) for word in words]), *capsys.readouterr()

    return typical


def test_impute_writes_two_files_and_one_document(call):
    words = ("tabular", "impute", "t.csv", "--label", "y", "--steps", 10, "--samples", 4)
    code, out, said = call(*words, "--json", "--quiet")
    assert (code, said) == (0, "")
    document = json.loads(out)
    assert document["filled"] == 10
    assert document["filled_by_column"] == {"b": 10}
    assert Path(document["out"]).read_text().count(",,") == 0
    assert len(Path(document["uncertainty"]).read_text().splitlines()) == 61
    code, out, said = call(*words)
    assert (code, out) == (2, "")
    assert "--fresh" in said
    assert call(*words, "--fresh", "--quiet")[0] == 0


def test_balance_writes_the_table_with_new_rows(call):
    code, out, _ = call(
        "tabular", "balance", "t.csv", "--label", "y", "--ratio", 0.5, "--steps", 10, "--draws", 4, "--out", "o.parquet"
    )
    assert code == 0
    assert "added: 12" in out
    assert Path("o.parquet").exists()


@pytest.mark.parametrize("name", ["impute", "balance"])
def test_a_dry_run_shows_what_would_be_done_and_writes_nothing(call, tmp_path: Path, name: str):
    code, out, _ = call("tabular", name, "t.csv", "--label", "y", "--dry-run", "--json", "--seed", 3)
    document = json.loads(out)
    assert code == 0
    assert document["learned"] == ["a", "b"]
    assert document["options"]["seed"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_dry_run_of_an_evaluation_shows_its_defaults(call):
    for words, shown in (
        (["impute"], {"hide": 0.2, "repeats": 3}),
        (["balance"], {"repeats": 5, "test": 0.3}),
        (["balance", "--test", 0.5, "--repeats", 2], {"repeats": 2, "test": 0.5}),
    ):
        name, *options = words
        code, out, _ = call("tabular", name, "t.csv", "--label", "y", "--evaluate", *options, "--dry-run", "--json")
        assert code == 0
        assert json.loads(out).items() >= shown.items()


def test_evaluations_print_what_they_measured(call, monkeypatch):
    for module in (balance_benchmark, imputation_benchmark, rivals):
        monkeypatch.setattr(module, "TREES", 3)
    code, out, said = call(
        "tabular", "impute", "t.csv", "--label", "y", "--evaluate", "--repeats", 1, "--steps", 10, "--samples", 4,
        "--at-least", "methods.ours.label_accuracy=2", "--json", "--write", "r.json",
    )  # fmt: skip
    assert code == 1
    assert json.loads(out)["methods"]["ours"]["nrmse"] > 0
    assert "below 2" in said
    assert json.loads(Path("r.json").read_text()) == json.loads(out)
    code, out, _ = call(
        "tabular", "balance", "t.csv", "--label", "y", "--evaluate", "--repeats", 2, "--steps", 10, "--draws", 4
    )
    assert code == 0
    assert "smote: precision" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["impute", "nowhere.csv"], "cannot read nowhere.csv"),
        (["impute", "t.csv", "--label", "z"], "no column 'z'"),
        (["impute", "t.csv", "--ignore", "bb"], "did you mean 'b'"),
        (["impute", "t.csv", "--out", "t.csv", "--fresh"], "the input"),
        (["impute", "t.csv", "--out", "t.txt"], "takes a table"),
        (["impute", "t.csv", "--out", "t.csv/x.csv"], "cannot write"),
        (["impute", "t.csv", "--evaluate", "--hide", "2"], "--hide"),
        (["impute", "t.csv", "--at-least", "x=1"], "--at-least needs --evaluate"),
        (["impute", "t.csv", "--hide", "0.5"], "--hide needs --evaluate"),
        (["impute", "t.csv", "--repeats", "9"], "--repeats needs --evaluate"),
        (["impute", "t.csv", "--evaluate", "--seed", "-1"], "--seed"),
        (["balance", "t.csv", "--label", "y", "--rare", "rar"], "did you mean 'rare'"),
        (["balance", "t.csv", "--label", "y", "--draws", "3"], "--draws must be even"),
        (["balance", "t.csv"], "--label"),
        (["balance", "t.csv", "--label", "y", "--test", "0.9"], "--test needs --evaluate"),
        (["balance", "t.csv", "--label", "y", "--repeats", "9"], "--repeats needs --evaluate"),
        (["balance", "t.csv", "--label", "y", "--evaluate", "--seed", "20240101123"], "--seed"),
        (["balance", "t.csv", "--label", "y", "--evaluate", "--test", "0.01"], "1 to judge"),
        (["balance", "t.csv", "--label", "y", "--evaluate", "--test", "0.03"], "0 to judge"),
        (["balance", "t.csv", "--label", "y", "--evaluate", "--test", "2"], "--test"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_wrong_input_is_refused_before_any_work(call, tmp_path: Path, words: list[str], message: str, dry: list[str]):
    code, out, said = call("tabular", *words, *dry)
    assert (code, out) == (2, "")
    assert message in said
    assert "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_what_has_no_effect_is_said(call):
    words = ("tabular", "impute", "t.csv", "--dry-run")
    plain = call(*words)
    for option in (["--model", "base"], ["--device", "cpu"], ["--dtype", "fp32"], ["--set", "x=1"], ["--config", "f"]):
        code, out, said = call(*words, *option)
        assert (code, out) == plain[:2]
        assert f"warning: {option[0]} has no effect" in said
