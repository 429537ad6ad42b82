"""The whole audit on the tiny model: what it leaves, that it resumes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import typicality
from typicality.api import settings_for
from typicality.applications.audit.labels import label_scores
from typicality.cli.app import run as command
from typicality.run import open_run, resolve_settings

QUICK = {
    "finetune": {"steps": 2, "batch_size": 8, "validate_every": 2},
    "score": {"draws": 2, "refine_draws": 4, "shard_images": 8},
    "mine": {"noises": 1, "share": 1.0, "per_label": 40},
    "dtype": "fp32",
}


@pytest.fixture(scope="module")
def result(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("audit") / "run"
    return typicality.audit(tiny_folder, "folder", model=str(tiny_model), out=out, draws=4, **QUICK)


def test_an_audit_leaves_its_documents(result):
    document = json.loads((result.folder / "findings.json").read_text())
    assert document == result.document
    assert set(document["measures"]) >= {"label_errors", "near_duplicates", "findings", "high"}
    assert document["label_matrix"]["labels"] == ["blue", "red"]
    labels = pq.read_table(result.folder / "labels.parquet")
    assert labels.num_rows == 32
    assert all(labels["held_out"].to_pylist()), "two folds, so that no image is judged by a model that saw it"
    shown = pq.read_table(result.folder / "findings.parquet")
    assert set(shown["id"].to_pylist()) == {f.id for f in result.findings}
    settings = json.loads((result.folder / "run.json").read_text())["settings"]
    assert settings["finetune"]["folds"] == 2


def test_a_model_that_was_not_fine_tuned_has_seen_no_image(tiny_folder: Path, tiny_model: Path, tmp_path: Path):
    """Without fine-tuning all 32 images are held out; with one model those of `finetune.held_out`."""
    options = {"model": str(tiny_model)}
    for enabled, number in ((False, {32}), (True, set(range(1, 32)))):
        settings = settings_for(tiny_folder, "folder", **options, finetune={"enabled": enabled})
        assert len(open_run(settings, tmp_path / f"run-{enabled}").held_out) in number


def test_label_scores_are_read_back_and_not_drawn_again(result):
    run = open_run(resolve_settings(str(result.folder)), result.folder)
    spent = run.directory.record["stages"]["audit labels"]["unet_evaluations"]
    first = label_scores(run, 4)
    assert spent == 32 * 4 * 3, "four draws under the null prompt and two labels"
    assert run.directory.record["stages"]["audit labels"]["unet_evaluations"] == spent
    assert first.units.shape == (32, 2, 2)
    kept = label_scores(run, 4, image_ids=first.image_ids[:3])
    assert kept.units == pytest.approx(first.units[:3], rel=1e-3, abs=1e-6)


def test_a_finished_run_is_audited_again_with_a_baseline(result, capsys):
    """On the run directory itself; nothing is new against its own findings, so nothing breaches."""
    baseline = result.folder.parent / "baseline.json"
    baseline.write_text((result.folder / "findings.json").read_text())
    arguments = ["audit", str(result.folder), "--label-draws", "4", "--fail-on", "any:low", "--json", "--quiet"]
    assert command([*arguments, "--baseline", str(baseline)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert not any(finding["new"] for finding in document["findings"])
    assert command(arguments) == (1 if document["findings"] else 0)


def test_wrong_input_ends_with_code_2(tiny_folder: Path, tmp_path: Path, capsys):
    out = str(tmp_path / "run")
    assert command(["audit", str(tiny_folder), "--label", "folder", "--out", out, "--fail-on", "wrong"]) == 2
    assert "measures:" in capsys.readouterr().err
    missing = ["--baseline", str(tmp_path / "no.json"), "--images-only"]
    assert command(["audit", str(tiny_folder), "--label", "folder", "--out", out, *missing]) == 2
    assert not (tmp_path / "run").exists()


def test_without_the_model(tiny_folder: Path, tmp_path: Path, capsys):
    """No model is named and none is loaded; findings are written, and label measures cannot be asked for."""
    arguments = ["audit", str(tiny_folder), "--label", "folder", "--out", str(tmp_path / "run"), "--images-only"]
    assert command([*arguments, "--quiet"]) == 0
    document = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert document["label_matrix"] is None
    assert not (tmp_path / "run" / "model").exists()
    assert command([*arguments, "--quiet", "--fail-on", "label_errors>2%"]) == 2
    capsys.readouterr()
