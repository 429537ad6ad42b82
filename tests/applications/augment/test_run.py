"""Synthetic images of a run: of which sources, what is written and not made again, and that it loads as a data set."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import typicality
from tests.applications.redesigned import draw_subjects, mine
from typicality.applications.augment import run as module
from typicality.applications.augment.making import from_bytes, make, noise_of, synthesise, to_bytes
from typicality.applications.augment.options import AugmentOptions, evaluations_of
from typicality.applications.augment.pictures import CROSSED, sheet, strip_of
from typicality.applications.augment.run import SCHEMA, Augmentation, augment, judged, sources_of, unit_of
from typicality.cli.app import run as command
from typicality.config import DatasetSettings
from typicality.dataset import load_dataset
from typicality.errors import DatasetError, InterruptedRun
from typicality.model.sampling import grid_of
from typicality.model.sdedit import sdedit
from typicality.progress import Progress
from typicality.run import Run, open_finished

pytestmark = pytest.mark.slow

OPTIONS = AugmentOptions(per_image=2, strength=0.6, steps=2, draws=4, near=0.0, far=10.0)
NEGATIVES = replace(OPTIONS, kind="negatives", far=None)
FAST = ["--per-image", "2", "--sampler-steps", "2", "--draws", "4"]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mine(tmp_path_factory.mktemp("augment"), tiny_model)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_finished(folder, "finetune")


@pytest.fixture(scope="module")
def made(folder: Path) -> Augmentation:
    return augment(folder, OPTIONS, images=5)


@pytest.fixture(scope="module")
def negatives(folder: Path) -> Augmentation:
    return augment(folder, NEGATIVES, images=3)


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder, and a hash of what is in it."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def metadata(found: Augmentation) -> list[dict[str, str]]:
    with (found.images / "metadata.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_row_a_synthetic_image(made: Augmentation):
    """5 sources of each of 2 labels, 2 variants each; what is kept is there as a picture, and nothing else is."""
    assert made.table.schema == SCHEMA
    assert made.table.num_rows == 2 * 5 * 2 == made.summary["made"]
    assert pq.read_table(made.folder / "rows.parquet").equals(made.table)
    assert json.loads((made.folder / "summary.json").read_text()) == made.summary
    kept = {row["file_name"] for row in made.table.to_pylist() if row["kept"]}
    assert 0 < len(kept) == made.summary["kept"] == made.summary["why"]["kept"]
    assert {p.name for p in made.images.iterdir()} == {*kept, "metadata.csv"}
    assert {row["file_name"] for row in metadata(made)} == kept
    assert (made.folder / "sheet.png").stat().st_size > 1000
    for row in made.table.to_pylist():
        scores = {s["label"]: s["typicality"] for s in row["scores"]}
        assert row["typicality"] == scores[row["label"]]
        assert row["best_label"] == max(scores, key=lambda label: scores[label])
        assert row["kept"] == (row["best_label"] == row["label"])  # no distance is refused here
        assert row["standard_error"] >= 0


def test_held_out_images_are_never_used(run: Run, made: Augmentation, negatives: Augmentation):
    held_out = {i.image_id for i in run.dataset.held_out()[1]}
    groups = {i.group for i in run.dataset.held_out()[1]}
    assert held_out
    for found in (made, negatives):
        assert not held_out & set(found.table["source_image_id"].to_pylist())
        assert not groups & set(found.table["group"].to_pylist())
    everything, _ = sources_of(run)
    assert {i.image_id for i in everything} == {i.image_id for i in run.dataset} - held_out


def test_the_folder_is_a_data_set(run: Run, made: Augmentation):
    """It loads under the run's own names of label and group; variants carry their source's."""
    found = load_dataset(DatasetSettings(source=str(made.images), label="year", group="subject", min_per_label=1))
    assert len(found) == made.summary["kept"]
    assert found.labels == run.dataset.labels
    assert not found.unreadable
    of = {i.image_id: i for i in run.dataset}
    for image in found:
        source = of[image.metadata["source_image_id"]]
        assert (image.labels, image.group) == (source.labels, source.group)
        assert image.metadata["kept"] == "True"
    assert not any("not named" in warning for warning in found.warnings)


def test_the_folder_is_an_image_folder_of_the_datasets_library(made: Augmentation, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(made.images), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(found) == made.summary["kept"]
    assert {str(label) for label in found["year"]} <= {"2016", "2024"}
    assert found[0]["image"].size == (32, 32)


def test_negatives_have_no_label(negatives: Augmentation):
    """No column and no folder says one: loading with the label's name fails, and so does loading without."""
    assert negatives.summary["kept"] > 0, "the tiny model must leave some, or this test says nothing"
    for row in metadata(negatives):
        assert "year" not in row
        assert not {"2016", "2024"} & set(row.values())
    assert all(p.parent == negatives.images for p in negatives.images.rglob("*"))
    for label in ("year", None):
        with pytest.raises(DatasetError, match="label"):
            load_dataset(DatasetSettings(source=str(negatives.images), label=label))
    for row in negatives.table.to_pylist():
        highest = max(s["typicality"] for s in row["scores"])
        assert row["typicality"] == highest
        assert row["kept"] == (highest <= 0)


def test_neither_batch_nor_order_changes_a_variant(run: Run):
    """Noise and pictures are an image's own: alone, in a batch, and turned round they are the same."""
    images = [i for i in sources_of(run)[0] if i.labels == ("2016",)][:3]
    together = make(run, run.denoiser, images, "2016", OPTIONS.resolved())
    turned = make(run, run.denoiser, images[::-1], "2016", OPTIONS.resolved())
    alone = make(run, run.denoiser, images[1:2], "2016", OPTIONS.resolved())
    for pictures in (turned.pictures[::-1], np.concatenate([together.pictures[:1], alone.pictures,
                                                            together.pictures[2:]])):  # fmt: skip
        assert np.abs(pictures.astype(int) - together.pictures).max() <= 1
    assert np.abs(together.pictures[:, 0].astype(int) - together.pictures[:, 1]).max() > 5  # variants differ
    by_name = {row["file_name"]: row for row in turned.rows}
    for row in together.rows:
        assert by_name[row["file_name"]]["typicality"] == pytest.approx(row["typicality"], rel=0.1, abs=1e-4)


@pytest.mark.parametrize("label", ["2016", "2024"])
def test_a_variant_is_denoised_under_its_own_label(run: Run, label: str):
    images = [i for i in sources_of(run)[0] if i.labels == (label,)][:2]
    options = OPTIONS.resolved()
    assert options.strength is not None
    assert options.guidance is not None
    z = run.latents.stack([i.image_id for i in images])
    noise = torch.stack([noise_of(i.image_id, 0, z.shape[1:], 0) for i in images])
    states = run.denoiser.encode_prompts([run.settings.prompt.null, run.prompts.of(label)])
    grid = grid_of(run.denoiser.alphas_cumprod, options.steps, options.strength)
    expected = sdedit(run.denoiser, z, states, grid, options.guidance, noise, label=1)
    torch.testing.assert_close(synthesise(run, run.denoiser, z, label, options, noise), expected, rtol=1e-4, atol=1e-5)
    made = make(run, run.denoiser, images, label, options)
    whole = run.denoiser.decode_latents(expected) - run.denoiser.decode_latents(z) + from_bytes(made.sources)
    assert np.abs(made.pictures[:, 0].astype(int) - to_bytes(whole)).max() <= 2


def test_groups_are_in_the_key_without_fine_tuning(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The weights stay those of the base when groups change; the groups of what was made must not."""
    source = draw_subjects(tmp_path / "subjects")

    def made() -> Augmentation:
        typicality.finetune(source, "year", model=str(tiny_model), out=tmp_path / "run", dtype="fp32",
                            dataset={"group": "subject"}, finetune={"enabled": False, "held_out": 0.0})  # fmt: skip
        return augment(tmp_path / "run", OPTIONS)

    monkeypatch.setattr(module, "SHARD_SOURCES", 1)  # whatever the order, which follows from the groups
    table = source / "metadata.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:9]))  # both designs of four subjects
    first = made()
    table.write_text(table.read_text().replace(",b", ",c"))
    assert {row["group"][0] for row in first.table.to_pylist()} == {"b"}
    assert {row["group"][0] for row in made().table.to_pylist()} == {"c"}


def test_a_killed_run_ends_with_the_same_files(folder: Path, made: Augmentation, monkeypatch: pytest.MonkeyPatch):
    """Stopped before its second shard, then continued: every file is byte for byte that of one go."""
    before = files(made.folder)
    work, calls = module.make, []

    def once(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return work(*arguments)

    monkeypatch.setattr(module, "make", once)
    with pytest.raises(InterruptedRun, match="continues"):
        augment(folder, OPTIONS, images=5, fresh=True)
    assert json.loads((folder / "run.json").read_text())["stages"]["augment variants"]["state"] == "interrupted"
    assert not made.images.exists()
    monkeypatch.setattr(module, "make", work)
    again = augment(folder, OPTIONS, images=5)
    assert again.folder == made.folder
    assert files(made.folder) == before


def test_what_is_made_is_not_made_again(folder: Path, made: Augmentation, monkeypatch: pytest.MonkeyPatch):
    """Neither for the same command, nor for another rule of what is kept."""
    before = files(made.folder)
    monkeypatch.setattr(module, "make", None)  # nothing may call it
    assert augment(folder, OPTIONS, images=5).table.equals(made.table)
    assert files(made.folder) == before
    stricter = augment(folder, replace(OPTIONS, near=5.0), images=5)
    assert stricter.folder != made.folder
    assert stricter.summary["why"] == {"near copy": 20}
    assert metadata(stricter) == []
    with pytest.raises(TypeError):
        augment(folder, replace(OPTIONS, strength=0.5), images=5)


def test_fewer_images_are_the_first_of_more(folder: Path, made: Augmentation):
    fewer = augment(folder, OPTIONS, images=2)
    assert fewer.folder == made.folder
    assert fewer.table.num_rows == 8
    assert set(fewer.table["file_name"].to_pylist()) < set(made.table["file_name"].to_pylist())
    assert {row["file_name"] for row in metadata(fewer)} == {p.name for p in fewer.images.glob("*.png")}
    augment(folder, OPTIONS, images=5)


def test_one_label_alone(folder: Path, made: Augmentation):
    found = augment(folder, OPTIONS, images=2, label="2024")
    assert set(found.table["label"].to_pylist()) == {"2024"}
    assert found.folder != made.folder


def test_hostile_labels_and_columns(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Labels are in no path; they and names that are taken survive the table, to the letter."""
    nasty = '../../etc/"x",\n=1+1'
    names = {"2016": nasty, "2024": "b/..\\c"}
    images = tuple(replace(i, labels=(names[i.labels[0]],)) for i in run.dataset)
    other = replace(run.dataset, images=images, labels=tuple(names.values()), label="typicality")
    opened = replace(run, dataset=other, settings=run.settings.model_copy(
        update={"dataset": run.settings.dataset.model_copy(update={"group": "why"})}))  # fmt: skip
    rows = [
        {"file_name": f"{i.image_id}-0.png", "source_image_id": i.image_id, "source": i.file_name, "group": i.group,
         "label": i.labels[0], "typicality": 0.5, "standard_error": 0.1, "distance": 0.4, "kept": True, "why": "kept"}
        for i in images
    ]  # fmt: skip
    module._write_metadata(tmp_path / "metadata.csv", opened, rows, OPTIONS)
    for i in run.dataset:
        (tmp_path / f"{i.image_id}-0.png").write_bytes(Path(i.source.path).read_bytes())
    found = load_dataset(DatasetSettings(source=str(tmp_path), label="typicality", group="why"))
    assert set(found.labels) == set(names.values())
    assert {i.image_id: i.labels for i in found} == {i.image_id: i.labels for i in images}
    assert {i.group for i in found} == {i.group for i in images}
    assert found[0].metadata["augment_typicality"] == "0.5"
    parts = list(module._parts(opened, sources_of(opened)[0]))
    assert all(name.isalnum() for name, _ in parts)


@pytest.mark.parametrize(
    ("label", "column", "group"),
    [
        ("group", None, "augment_group"),
        ("year", "year", "augment_group"),
        ("year", "file_name", "augment_group"),
        ("year", None, "group"),
    ],
)
@pytest.mark.parametrize("kind", ["variants", "negatives"])
def test_no_two_columns_have_one_name(
    run: Run, tmp_path: Path, label: str, column: str | None, group: str, kind: Literal["variants", "negatives"]
):
    """Groups stand under another name where theirs is taken, and under the labels' no column of negatives does."""
    settings = run.settings.dataset.model_copy(update={"group": column})
    opened = replace(
        run, dataset=replace(run.dataset, label=label), settings=run.settings.model_copy(update={"dataset": settings})
    )
    rows = [
        {"file_name": f"{i.image_id}-0.png", "source_image_id": i.image_id, "source": i.file_name, "group": i.group,
         "label": i.labels[0], "typicality": 0.5, "standard_error": 0.1, "distance": 0.4, "kept": True, "why": "kept"}
        for i in run.dataset
    ]  # fmt: skip
    module._write_metadata(tmp_path / "metadata.csv", opened, rows, AugmentOptions(kind))
    for i in run.dataset:
        (tmp_path / f"{i.image_id}-0.png").write_bytes(Path(i.source.path).read_bytes())
    if kind == "negatives":
        with pytest.raises(DatasetError, match="label"):
            load_dataset(DatasetSettings(source=str(tmp_path), label=label))
        return
    found = load_dataset(DatasetSettings(source=str(tmp_path), label=label, group=group))
    assert {i.image_id: (i.labels, i.group) for i in found} == {i.image_id: (i.labels, i.group) for i in run.dataset}


def test_images_of_several_labels_are_passed_over(run: Run):
    """One prompt need not keep two labels: such images are no sources, and where there are no others that is said."""
    training = {i.image_id for i in run.dataset.held_out()[0]}
    first = min(training)
    some = tuple(replace(i, labels=("2016", "2024")) if i.image_id == first else i for i in run.dataset)
    found, several = sources_of(replace(run, dataset=replace(run.dataset, images=some)))
    assert {i.image_id for i in found} == training - {first}
    assert several == 1
    both = tuple(replace(i, labels=("2016", "2024")) for i in run.dataset)
    with pytest.raises(DatasetError, match="one label an image"):
        sources_of(replace(run, dataset=replace(run.dataset, images=both)))


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_folds_are_warned_of(tiny_model: Path, tmp_path: Path):
    """Their models know images that a classifier would be judged on; a single model does not, and nothing is said."""
    folded = mine(tmp_path, tiny_model, folds=2)
    heard = Heard()
    found = augment(folded, OPTIONS, images=1, progress=heard)
    assert any("--folds" in line for line in heard.said)
    assert found.summary["model_folds"] == 2


def test_distances_are_in_the_runs_unit(run: Run, made: Augmentation):
    unit = unit_of(run)
    assert unit == made.summary["unit_distance"] > 0
    rows = made.table.to_pylist()
    assert [row["distance"] for row in rows] == pytest.approx([row["moved"] / unit for row in rows], rel=1e-5)
    assert [row["kept"] for row in judged(rows, OPTIONS, unit)] == [row["kept"] for row in rows]


def test_a_stronger_variant_is_farther_away(run: Run):
    images = [i for i in sources_of(run)[0] if i.labels == ("2016",)][:4]
    weak, strong = (
        make(run, run.denoiser, images, "2016", replace(OPTIONS, strength=s).resolved()) for s in (0.02, 0.9)
    )
    moved = [float(np.mean([row["moved"] for row in made.rows])) for made in (weak, strong)]
    assert moved[0] < moved[1]


@pytest.mark.parametrize("options", [OPTIONS, NEGATIVES, replace(NEGATIVES, guidance=0.0)])
def test_no_more_is_evaluated_than_was_planned(run: Run, options: AugmentOptions):
    images = [i for i in sources_of(run)[0] if i.labels == ("2016",)][:3]
    before = run.denoiser.evaluations
    make(run, run.denoiser, images, "2016", options.resolved())
    assert run.denoiser.evaluations - before == 3 * evaluations_of(options, labels=2)


def test_bytes_there_and_back():
    pixels = torch.tensor([-1.0, 0.0, 1.0, 7.0])[None, None, None].expand(1, 3, 1, 4)
    there = to_bytes(pixels)
    assert there[0, 0, :, 0].tolist() == [0, 128, 255, 255]
    assert (to_bytes(from_bytes(there)) == there).all()


def test_what_is_not_kept_is_crossed_out():
    grey = np.full((16, 16, 3), 100, dtype=np.uint8)
    strip = strip_of(grey, np.stack([grey, grey]), [True, False])
    assert strip.size == (3 * 20 + 4, 16)
    assert strip.getpixel((24 + 8, 8)) == (100, 100, 100)
    assert strip.getpixel((44 + 8, 8)) == CROSSED
    assert isinstance(sheet([(grey, np.stack([grey]), [True])] * 3), Image.Image)


# --------------------------------------------------------------------------------------------- command and function


def test_the_command_prints_one_document(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "augment.json"
    words = ["augment", str(folder), "--images", "2", *FAST, "--json", "-q", "--write", str(out)]
    assert command(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    assert (document["kind"], document["made"], document["sources"]) == ("variants", 8, 4)
    assert (Path(document["folder"]) / "images" / "metadata.csv").is_file()


def test_a_dry_run_does_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    """15 of 20 subjects are for training. Variants of 3 each: 2 x 2 steps x 2 prompts + 3 x 4 draws x 3."""
    before = files(folder)
    assert command(["augment", str(folder), "--images", "3", *FAST, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["sources"] == {"2016": 3, "2024": 3}
    assert plan["UNet evaluations at most"] == 6 * (8 + 36)
    assert files(folder) == before


def test_from_python(folder: Path):
    found = typicality.augment(folder, kind="negatives", images=1, only="2016", per_image=1, steps=2, draws=4, seed=3)
    assert found.table.num_rows == 1
    assert found.summary["seed"] == 3
    assert "augment" in typicality.__all__


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--label", "2025"], "'2024'"),
        (["--label", "2025", "--dry-run"], "'2024'"),
        (["--strength", "2"], "--strength"),
        (["--kind", "negatives", "--guidance", "3"], "--guidance"),
        (["--kind", "negatives", "--far", "0.5"], "--far has no effect on negatives"),
        (["--kind", "pictures"], "--kind"),
        (["--set", "finetune.held_out=0.5"], "finetune.held_out"),
    ],
)
def test_wrong_input_is_one_message(folder: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]):
    assert command(["augment", str(folder), *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command(["augment", str(tmp_path)]) == 2
    assert "run" in capsys.readouterr().err


def test_the_record_of_the_run_keeps_its_settings(folder: Path):
    before = json.loads((folder / "run.json").read_text())["settings"]
    assert command(["augment", str(folder), "--images", "1", "--seed", "7", *FAST, "-q"]) == 0
    assert json.loads((folder / "run.json").read_text())["settings"] == before
