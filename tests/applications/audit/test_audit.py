"""The whole audit on the tiny model: what it leaves, that it resumes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import typicality
from tests.applications.audit.conftest import load, marker, write_images
from typicality.api import settings_for
from typicality.applications.audit import auditing
from typicality.applications.audit.labels import label_scores
from typicality.cli.app import run as command
from typicality.dataset.split import fold_of
from typicality.run import open_run, resolve_settings

pytestmark = pytest.mark.slow

QUICK = {
    "finetune": {"steps": 2, "batch_size": 8, "validate_every": 2},
    "score": {"draws": 2, "refine_draws": 4, "shard_images": 8},
    "mine": {"noises": 1, "share": 1.0, "per_label": 40},
    "dtype": "fp32",
}


@pytest.fixture(scope="module")
def result(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("audit") / "run"
    return typicality.audit(tiny_folder, "folder", model=str(tiny_model), out=out, label_draws=4, **QUICK)


def test_an_audit_leaves_its_documents(result):
    document = json.loads((result.folder / "findings.json").read_text())
    assert document == result.document
    assert set(document["measures"]) >= {"label_errors", "near_duplicates", "findings", "high"}
    assert document["label_matrix"]["labels"] == ["blue", "red"]
    assert document["images_only"] is False
    assert {"outside_truth", "borders", "repeated_object"} & set(document["not_examined"]) == {"outside_truth"}
    labels = pq.read_table(result.folder / "labels.parquet")
    assert labels.num_rows == 32
    assert all(labels["held_out"].to_pylist()), "two folds, so that no image is judged by a model that saw it"
    shown = pq.read_table(result.folder / "findings.parquet")
    assert set(shown["id"].to_pylist()) == {f.id for f in result.findings}
    settings = json.loads((result.folder / "run.json").read_text())["settings"]
    assert settings["finetune"]["folds"] == 2


def test_an_audit_says_which_model_and_elements_it_stands_on(result):
    stages = json.loads((result.folder / "run.json").read_text())["stages"]
    assert stages["audit"]["state"] == "done"
    assert stages["audit"]["built_on"] == {"finetune": stages["finetune"]["weights"], "mine": stages["mine"]["key"]}


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


def copies(folder: Path, numbers: range) -> Path:
    """Add the pictures of these numbers of the label a once more, other bytes under the same label."""
    for i in numbers:
        picture = Image.open(folder / "a" / f"{i}.png")
        picture.save(folder / "a" / f"again-{i}.jpg", quality=98, subsampling=0)
    return folder


@pytest.mark.parametrize("folds", [None, 2, 1])
def test_near_duplicates_across_folds_or_the_split(folds: int | None, tmp_path: Path):
    """A copy and its picture are groups of their own, so that hashes put some pairs on two sides: of the two folds that
    an audit has by default, and with one fold of the split that fine-tuning makes.
    """
    folder = copies(write_images(tmp_path / "images", labels=("a", "b")), range(20))
    options = {} if folds is None else {"finetune": {"folds": folds}}
    result = typicality.audit(folder, "folder", out=tmp_path / "run", images_only=True, **options)
    dataset = load(folder)
    held_out = {i.image_id for i in dataset.held_out()[1]}
    side = {i.file_name: i.image_id in held_out if folds == 1 else fold_of(i.group, 2) for i in dataset}
    crossing = sum(side[f"a/{i}.png"] != side[f"a/again-{i}.jpg"] for i in range(20))
    assert crossing >= 3
    found = [f for f in result.findings if f.kind == "near_duplicates"]
    assert [(f.title, f.details["pairs"]) for f in found] == [
        ("near-duplicate images lie on both sides of the split", crossing)
    ]
    assert result.document["measures"]["near_duplicates"] == pytest.approx(2 * crossing / len(dataset), abs=1e-6)


def test_a_baseline_hides_known_images_and_no_others(tmp_path: Path, capsys):
    """Twelve copies are in the baseline; twelve more are new: only their images count, and they are shown first."""
    folder = copies(write_images(tmp_path / "images", labels=("a", "b")), range(12))
    out, baseline = tmp_path / "run", tmp_path / "baseline.json"
    arguments = ["audit", str(folder), "--label", "folder", "--out", str(out), "--images-only", "--quiet"]
    gates = ["--fail-on", "near_duplicates>0,duplicates:low", "--baseline", str(baseline)]
    assert command(arguments) == 0
    document = json.loads((out / "findings.json").read_text())
    baseline.write_text(json.dumps(document))
    before = {i for f in document["findings"] for i in f["concerns"]}
    assert command([*arguments, *gates]) == 0
    document = json.loads((out / "findings.json").read_text())
    assert document["known"] == len(document["findings"]) > 0
    assert (sum(document["counts"].values()), document["measures"]["findings"]) == (0, 0)
    assert "Nothing is new" in (out / "index.html").read_text()

    copies(folder, range(12, 24))
    assert command([*arguments, *gates]) == 1
    document = json.loads((out / "findings.json").read_text())
    split = next(f for f in document["findings"] if "split" in f["title"])
    new = set(split["concerns"]) - before
    assert split["new"]
    assert document["measures"]["near_duplicates"] == pytest.approx(len(new) / (80 + 24), abs=1e-6)
    assert set(split["image_ids"][: len(new)]) == new
    capsys.readouterr()


def test_a_dry_run_plans_the_folds_and_writes_nothing(tiny_folder: Path, tmp_path: Path, capsys, monkeypatch):
    """Two folds unless told otherwise; without the model there is no fine-tuning. A file of boxes is named in full."""
    monkeypatch.chdir(tmp_path)
    content = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "bbox": [1, 1, 5, 5]}]}
    Path("boxes.json").write_text(json.dumps(content))
    arguments = ["audit", str(tiny_folder), "--label", "folder", "--dry-run", "--json", "--boxes", "boxes.json"]
    assert command(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["finetune"]["folds"] == 2
    assert document["settings"]["dataset"]["boxes"] == str(tmp_path / "boxes.json")
    assert document["plan"]["fine-tuning"].startswith("2 folds")
    assert document["plan"]["UNet evaluations for labels"].startswith(f"{32 * 3 * 4} to {32 * 3 * 16}")
    assert command([*arguments, "--images-only"]) == 0
    assert "not used" in json.loads(capsys.readouterr().out)["plan"]["model"]
    assert [p.name for p in tmp_path.iterdir()] == ["boxes.json"]


def test_a_look_at_the_images_changes_nothing_else_of_a_run(tiny_folder: Path, result, capsys):
    """run.json keeps the settings of the model that is there; the report of the run shows the findings."""
    record = json.loads((result.folder / "run.json").read_text())
    kept = (result.folder / "findings.json").read_text()
    arguments = ["audit", str(tiny_folder), "--label", "folder", "--out", str(result.folder), "--images-only", "-q"]
    assert command(arguments) == 0
    after = json.loads((result.folder / "run.json").read_text())
    assert {name: after[name] for name in ("settings", "seed")} == {name: record[name] for name in ("settings", "seed")}
    assert 'id="elements"' in (result.folder / "index.html").read_text(), "the report of the run, and not a page alone"
    assert "built_on" not in after["stages"]["audit"], "what was found without the model holds with another one, too"
    (result.folder / "findings.json").write_text(kept)
    capsys.readouterr()


def test_what_could_not_be_measured_is_a_note(tmp_path: Path, capsys):
    """Four images a label are too few to look for giveaways: the audit ends well, and says what it did not check."""
    folder = write_images(tmp_path / "images", each=4, labels=("a", "b"))
    arguments = ["audit", str(folder), "--label", "folder", "--out", str(tmp_path / "run"), "--images-only", "--json"]
    assert command([*arguments, "--quiet", "--fail-on", "giveaway>10%"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["measures"]["giveaway"] is None
    assert "The condition giveaway>10% was not checked" in document["notes"][-1]


def test_shortcuts_of_too_few_groups_are_not_called_absent(tmp_path: Path, capsys):
    """Every image of b shows the mark, in four hospitals: a habit of theirs, for all that can be told."""
    folder = write_images(
        tmp_path / "images", lambda p, label, i, rng: marker(p, 4, 50) if label == "b" else p, labels=("a", "b")
    )
    rows = [f"{label}/{i}.png,{label},{i % 4}" for label in "ab" for i in range(40)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,hospital", *rows]))
    arguments = ["audit", str(folder), "--label", "label", "--images-only", "--json", "--quiet", "--fail-on"]
    conditions = "same_place:low,shortcut:high,high>0"
    grouped = ["--group", "hospital", "--out", str(tmp_path / "grouped")]
    assert command([*arguments, conditions, *grouped]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"same_place", "giveaway"} <= set(document["not_examined"])
    said = " ".join(document["notes"])
    assert "Too few groups carry 'a', 'b'" in document["notes"][0]
    assert "same_place:low was not checked" in said
    assert "shortcut:high was checked in part: same_place" in said
    assert "high>0 was checked in part" in said
    assert command([*arguments, conditions, "--out", str(tmp_path / "run")]) == 1
    document = json.loads(capsys.readouterr().out)
    assert "same_place" not in document["not_examined"]
    assert not [note for note in document["notes"] if note.startswith("Too few groups")]


def test_a_mask_that_cannot_be_read_is_refused_before_the_work(tmp_path: Path, capsys, monkeypatch):
    """The last of 8 masks is cut short: no model is trained first."""
    folder = write_images(tmp_path / "images", each=4, labels=("a", "b"))
    names = [f"{label}/{i}" for label in "ab" for i in range(4)]
    for name in names:
        Image.new("L", (64, 64), 255).save(folder / f"{name}-mask.png")
    rows = [f"{name}.png,{name[0]},{name}-mask.png" for name in names]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,mask", *rows]))
    damaged = folder / "b" / "3-mask.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    monkeypatch.setattr(auditing.pipeline, "mine", lambda *a: pytest.fail("it mined"))
    arguments = ["audit", str(folder), "--label", "label", "--masks", "mask", "--out", str(tmp_path / "run")]
    assert command(arguments) == 2
    assert "the mask of b/3.png" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_dry_run_refuses_what_the_audit_refuses_at_once(tiny_folder: Path, tmp_path: Path, dry, capsys, monkeypatch):
    monkeypatch.setattr(auditing.pipeline, "mine", lambda *a: pytest.fail("it mined"))
    arguments = ["audit", str(tiny_folder), "--label", "folder", "--out", str(tmp_path / "run"), *dry]
    for wrong, match in (
        (["--images-only", "--fail-on", "label_errors>2%"], "needs the model"),
        (["--baseline", str(tmp_path / "no.json")], "cannot read the baseline"),
        (["--label-draws", "5"], "even number of draws"),
    ):
        assert command([*arguments, *wrong]) == 2
        assert match in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_the_model(tiny_folder: Path, tmp_path: Path, capsys):
    """No model is named and none is loaded; findings are written, and label measures cannot be asked for."""
    arguments = ["audit", str(tiny_folder), "--label", "folder", "--out", str(tmp_path / "run"), "--images-only"]
    assert command([*arguments, "--quiet"]) == 0
    document = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert document["label_matrix"] is None
    assert "What to check in" in (tmp_path / "run" / "index.html").read_text()
    assert not (tmp_path / "run" / "model").exists()
    assert (document["images_only"], "label_error" in document["not_examined"]) == (True, True)
    for condition in ("label_errors>2%", "labels:high", "borders:low"):
        assert command([*arguments, "--quiet", "--fail-on", condition]) == 2
        assert f"'{condition}' needs the model" in capsys.readouterr().err
    assert command([*arguments, "--quiet", "--fail-on", "duplicates:high,any:high"]) == 0
    (note,) = [n for n in json.loads((tmp_path / "run" / "findings.json").read_text())["notes"] if "condition" in n]
    assert "any:high was checked in part: label_error" in note
