"""Imputations of a run: what is written, what is not done again, and what may not influence a fill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import typicality
from tests.applications.redesigned import draw_subjects, mine
from typicality.api import settings_for
from typicality.applications.impute import run as module
from typicality.applications.impute.choose import chosen_images, in_turns, seen_by
from typicality.applications.impute.fill import Hole, encode, fills_of, sample_latents
from typicality.applications.impute.judge import judge
from typicality.applications.impute.measure import rmse
from typicality.applications.impute.options import ImputeOptions, Region
from typicality.applications.impute.regions import Regions
from typicality.applications.impute.run import SCHEMA, Imputation, Work, impute
from typicality.cli.app import run as command
from typicality.config import DatasetSettings
from typicality.dataset import load_dataset
from typicality.dataset.split import is_held_out
from typicality.errors import DatasetError, InterruptedRun, SettingsError
from typicality.records import LabelledImage
from typicality.run import Run, open_finished

OPTIONS = ImputeOptions(samples=2, steps=2, draws=4)
HIDE = Region(hide=0.2)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mine(tmp_path_factory.mktemp("impute"), tiny_model)


@pytest.fixture(scope="module")
def opened(run: Path) -> Run:
    return open_finished(run, "finetune")


@pytest.fixture(scope="module")
def imputation(run: Path) -> Imputation:
    return impute(run, HIDE, OPTIONS, images=6)


def holes(opened: Run, images: Sequence[LabelledImage] | None = None) -> list[Hole]:
    regions, found = Regions(opened.dataset, HIDE), []
    for image in opened.dataset[:3] if images is None else images:
        view = opened.latents.view(image.image_id)
        missing = regions.of(image, view)
        assert missing is not None
        found.append(Hole(image, np.asarray(opened.dataset.open(image)), missing, view, opened.base.factor))
    return found


def fill(
    opened: Run, own: list[Hole], at_once: int = 64, options: ImputeOptions = OPTIONS, label: str = "2016"
) -> list[np.ndarray]:
    """The missing pixels of all samples, every hole under one label."""
    denoiser = opened.denoiser
    states = denoiser.encode_prompts([opened.settings.prompt.null, opened.prompts.of(label)])
    z = encode(denoiser, [hole.neutral for hole in own], opened.latents)
    return fills_of(denoiser, own, sample_latents(denoiser, own, z, states, [1] * len(own), options, 0, at_once))


def masks_of(folder: Path, images: Any, box: tuple[int, int, int, int] = (4, 4, 12, 20)) -> Path:
    """A mask per image, named as it is: white in the box."""
    folder.mkdir()
    for image in images:
        mask = Image.new("L", (image.width, image.height))
        mask.paste(255, box)
        mask.save(folder / f"{Path(image.file_name).stem}.png")
    return folder


# ------------------------------------------------------------------------------------------------ fills


def test_hidden_pixels_have_no_influence(opened: Run):
    """The same image with other pixels where it is missing has the same fill, bit for bit."""
    own = holes(opened)
    other = []
    for hole in own:
        pixels = hole.pixels.copy()
        pixels[hole.missing] = 255 - pixels[hole.missing]
        other.append(replace(hole, pixels=pixels))
    for a, b in zip(fill(opened, own), fill(opened, other), strict=True):
        assert (a == b).all()
    seen = holes(opened)[0]
    changed = replace(seen, pixels=np.where(seen.missing[..., None], seen.pixels, 0).astype(np.uint8))
    assert (fill(opened, [seen])[0] != fill(opened, [changed])[0]).any()


def test_neither_batch_nor_order_changes_a_fill(opened: Run):
    own = holes(opened)
    together, turned = fill(opened, own), fill(opened, own[::-1], at_once=4)[::-1]
    alone = [fill(opened, [hole], at_once=1)[0] for hole in own]
    for a, b, c in zip(together, turned, alone, strict=True):
        np.testing.assert_allclose(b, a, atol=0.05)
        np.testing.assert_allclose(c, a, atol=0.05)


def test_samples_differ_and_are_the_same_whatever_their_number(opened: Run):
    own = holes(opened)[:1]
    two, three = fill(opened, own)[0], fill(opened, own, options=replace(OPTIONS, samples=3))[0]
    np.testing.assert_allclose(three[:2], two, atol=0.05)
    assert np.abs(two[0] - two[1]).max() > 0.5


# --------------------------------------------------------------------------------------------- what is written


def test_a_row_an_image_with_errors_of_all_methods(run: Path, opened: Run, imputation: Imputation):
    table = imputation.table
    assert table.schema == SCHEMA
    assert pq.read_table(imputation.folder / "imputed.parquet").equals(table)
    assert json.loads((imputation.folder / "summary.json").read_text()) == imputation.summary
    by_id = {image.image_id: image for image in opened.dataset}
    for row in table.to_pylist():
        assert row["held_out"]
        assert row["share"] == pytest.approx(0.2, abs=0.02)
        assert all(row[name] >= 0 for name in SCHEMA.names if name.startswith("rmse_"))
        assert row["spread"] > 0
        assert row["rmse_mean"] < row["rmse_one"]
        image = by_id[row["image_id"]]
        original = np.asarray(opened.dataset.open(image))
        filled = np.asarray(Image.open(imputation.folder / row["picture"]))
        spread = np.asarray(Image.open(imputation.folder / row["spread_picture"]))
        missing = Regions(opened.dataset, HIDE).of(image, opened.latents.view(image.image_id))
        assert missing is not None
        assert (filled[~missing] == original[~missing]).all()
        assert (spread[~missing] == 0).all()
        difference = (filled[missing].astype(float) - original[missing]) / 255
        assert np.sqrt((difference**2).mean()) == pytest.approx(row["rmse_mean"], abs=0.002)
        rows, columns = slice(row["y0"], row["y1"]), slice(row["x0"], row["x1"])
        assert missing[rows, columns].all()
    assert imputation.summary["n"] == table.num_rows == 6
    assert imputation.summary["errors"]["harmonic"]["kept_better"] is not None
    assert set(imputation.summary["typicality"]) == {"fill", "original", "fill_without_label"}
    assert (imputation.folder / "sheet.png").is_file()


def test_only_what_the_model_has_not_seen_is_measured(opened: Run):
    """Five of twenty subjects are held out: ten images, of which five are of one subject each before any second."""
    chosen, _ = chosen_images(opened, Regions(opened.dataset, HIDE), None, None)
    assert {i.image_id for i in chosen} == opened.held_out
    assert len({i.group for i in chosen[:5]}) == 5
    assert chosen_images(opened, Regions(opened.dataset, HIDE), 4, None)[0] == chosen[:4]
    assert in_turns(list(reversed(chosen))) == chosen
    assert not seen_by(opened, 0) & opened.held_out


@pytest.mark.parametrize(
    ("source", "base", "unseen"), [("flags", "base", 10), ("photos", "base", 40), ("flags", "another", 40)]
)
def test_what_the_base_was_pretrained_on_is_not_hidden(opened: Run, source: str, base: str, unseen: int):
    """Without fine-tuning the run's model has seen none of 20 subjects with two images each. The bundled base was
    pretrained on what ships with it, without the groups of the fixed split: five of the twenty.
    """
    settings = opened.settings.model_copy(
        update={
            "dataset": opened.settings.dataset.model_copy(update={"source": source}),
            "finetune": opened.settings.finetune.model_copy(update={"enabled": False}),
        }
    )
    run = replace(opened, settings=settings)
    run.__dict__["_loaded"] = replace(opened.base, name=base), opened.base_hash
    regions = Regions(run.dataset, HIDE)
    assert len(run.held_out) == len(run.dataset) == 40
    chosen, _ = chosen_images(run, regions, None, None)
    assert len(chosen) == unseen
    assert unseen == 40 or all(is_held_out(image.group) for image in chosen)
    asked, _ = chosen_images(run, regions, None, "held-out")
    assert len(asked) == 40

    def notes(images: Sequence[LabelledImage]) -> str:
        rows = [{"image_id": i.image_id, "held_out": True, "outside_view": 0.0, "typicality": 0.1} for i in images]
        return " ".join(Work(run, regions, OPTIONS, Path()).notes(rows, []))

    assert "In-sample" not in notes(chosen)
    assert ("pretrained on 30 of these 40 images" in notes(asked)) == (unseen < 40)


@pytest.mark.slow
def test_a_run_that_holds_nothing_out_says_so(tmp_path: Path, tiny_model: Path):
    folder = mine(tmp_path, tiny_model, held_out=0.0)
    found = impute(folder, HIDE, replace(OPTIONS, samples=1), images=1)
    assert any("In-sample" in note for note in found.summary["notes"])
    assert found.summary["held_out"] == 0
    assert found.table["spread"].to_pylist() == [None]
    assert "best" not in found.summary["errors"]


def test_training_images_are_called_in_sample(run: Path):
    found = impute(run, HIDE, OPTIONS, images=1, part="training")
    assert any("In-sample" in note for note in found.summary["notes"])


def test_the_best_sample_is_kept_where_that_is_asked_for(run: Path, opened: Run):
    """What is written is the sample whose region has the highest typicality of the image's own label, by other draws
    than those that judge it.
    """
    found = impute(run, HIDE, replace(OPTIONS, keep="best"), images=4)
    by_id = {image.image_id: image for image in opened.dataset}
    chosen = []
    for row in found.table.to_pylist():
        filled = np.asarray(Image.open(found.folder / row["picture"]))
        (hole,) = holes(opened, [by_id[row["image_id"]]])
        error = rmse(filled[hole.missing].astype(float), hole.pixels[hole.missing])
        assert error == pytest.approx(row["rmse_best"], abs=0.002)
        assert abs(error - row["rmse_mean"]) > 0.003
        z = encode(opened.denoiser, [hole.neutral], opened.latents)
        states = opened.denoiser.encode_prompts([opened.settings.prompt.null, opened.prompts.of(row["label"])])
        latents = sample_latents(opened.denoiser, [hole], z, states, [1], OPTIONS, 0, 64)
        judged = [
            judge(opened, opened.denoiser, [hole], latents[:, k], [(row["label"],)], OPTIONS.draws, "imputed choice")
            for k in range(2)
        ]
        best = max(range(2), key=lambda k: judged[k][0].typicality[row["label"]])
        fills = fills_of(opened.denoiser, [hole], latents)[0]
        assert np.abs(filled[hole.missing] - fills[best]).max() < 1
        assert np.abs(filled[hole.missing] - fills[1 - best]).max() > 2
        chosen.append(best)
    assert set(chosen) == {0, 1}, "one sample is always the best, or this test says little"
    assert "kept_better" in found.summary["errors"]["mean"]


@pytest.mark.slow
def test_a_killed_imputation_ends_like_one_that_never_was(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped after its first shard of 2 images, then continued: every file is the same, bit for bit."""
    monkeypatch.setattr(module, "SHARD_IMAGES", 2)
    options = replace(OPTIONS, draws=6)

    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    whole = files(impute(run, HIDE, options, images=4).folder)
    write = module.Work.write_shard

    def once(self: Any, *arguments: Any) -> None:
        if any((self.folder / "shards").glob("*.parquet")):
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(module.Work, "write_shard", once)
    with pytest.raises(InterruptedRun, match="continues"):
        impute(run, HIDE, options, images=4, fresh=True)
    monkeypatch.setattr(module.Work, "write_shard", write)
    again = impute(run, HIDE, options, images=4)
    assert files(again.folder) == whole
    monkeypatch.setattr(module.Work, "write_shard", None)  # nothing may call it
    assert impute(run, HIDE, options, images=4).table.equals(again.table)


def test_masks_of_a_folder_and_a_mask_that_changed(run: Path, opened: Run, tmp_path: Path):
    """Two of all images have a mask; then one of them another, and that one alone is filled anew."""
    images = opened.dataset[:2]
    folder = masks_of(tmp_path / "masks", images)
    first = impute(run, Region(masks=folder), OPTIONS)
    assert [(r["x0"], r["y0"], r["x1"], r["y1"]) for r in first.table.to_pylist()] == [(4, 4, 12, 20)] * 2
    assert first.summary["n"] == 2
    assert "errors" not in first.summary
    assert first.table["rmse_mean"].to_pylist() == [None, None]
    mask = Image.new("L", (32, 32))
    mask.paste(255, (20, 20, 30, 30))
    mask.save(folder / f"{Path(images[0].file_name).stem}.png")
    stamps = {p.name: p.stat().st_mtime_ns for p in (first.folder / "filled").iterdir()}
    second = impute(run, Region(masks=folder), OPTIONS)
    changed = {p.name for p in (second.folder / "filled").iterdir() if p.stat().st_mtime_ns != stamps[p.name]}
    assert changed == {Path(r["picture"]).name for r in second.table.to_pylist() if r["image_id"] == images[0].image_id}
    assert {r["image_id"]: r["x0"] for r in second.table.to_pylist()}[images[0].image_id] == 20


def test_a_hole_that_the_model_does_not_see_has_no_typicality(tiny_model: Path, tmp_path: Path):
    """Of 96 x 32 pixels the model sees the middle 64. No label wins where it sees nothing of the hole: that row counts
    in no mean, also where it is the only one.
    """
    rng = np.random.default_rng(0)
    for name in ("a/0", "a/1", "b/2", "b/3"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 96, 3), dtype=np.uint8)).save(path)
    folder = tmp_path / "run"
    typicality.finetune(
        tmp_path / "photos", "folder", model=str(tiny_model), out=folder, dtype="fp32",
        finetune={"enabled": False},
    )  # fmt: skip
    images = {Path(i.file_name).stem: i for i in open_finished(folder, "finetune").dataset}
    masks = masks_of(tmp_path / "masks", [images["0"]], (0, 8, 12, 24))
    columns = ("typicality", "standard_error", "others", "label_found")
    for n in (1, 2):
        found = impute(folder, Region(masks=masks), OPTIONS)
        rows = {Path(row["file_name"]).stem: row for row in found.table.to_pylist()}
        assert len(rows) == found.summary["n"] == n
        assert rows["0"]["outside_view"] == 1
        assert [rows["0"][c + side] for c in columns for side in ("", "_original")] == [None] * 8
        assert any(note.startswith("1 regions lie wholly outside") for note in found.summary["notes"])
        if n == 1:
            assert found.summary["typicality"] == {"fill": {}, "original": {}}
            masks_of(tmp_path / "more", [images["2"]], (40, 8, 52, 24))
            (tmp_path / "more" / "2.png").rename(masks / "2.png")
    assert rows["2"]["typicality"] != 0
    fill = found.summary["typicality"]["fill"]
    assert fill["typicality"] == pytest.approx(rows["2"]["typicality"], rel=1e-3)
    assert fill["of_other_labels"] == pytest.approx(rows["2"]["others"], rel=1e-3)
    assert fill["label_found"] == (rows["2"]["label_found"] == "b")


def test_what_is_marked_is_filled_under_another_label(run: Path, opened: Run, tmp_path: Path):
    """A COCO file marks one image of 2016, which is filled as 2024: the pixels are those of that label's prompt."""
    image = next(i for i in opened.dataset if i.labels == ("2016",))
    coco = tmp_path / "boxes.json"
    coco.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": image.file_name}],
                "categories": [{"id": 1, "name": "scratch"}],
                "annotations": [{"image_id": 1, "category_id": 1, "bbox": [8, 6, 10, 4]}],
            }
        )
    )
    settings = settings_for(run, dataset={"boxes": str(coco)})
    found = impute(run, Region(marked=True), replace(OPTIONS, label="2024"), settings=settings)
    (row,) = found.table.to_pylist()
    assert (row["image_id"], row["label"], row["labels"]) == (image.image_id, "2024", ["2016"])
    assert (row["x0"], row["y0"], row["x1"], row["y1"]) == (8, 6, 18, 10)
    missing = np.zeros((32, 32), bool)
    missing[6:10, 8:18] = True
    view = opened.latents.view(image.image_id)
    hole = Hole(image, np.asarray(opened.dataset.open(image)), missing, view, opened.base.factor)
    filled = np.asarray(Image.open(found.folder / row["picture"]))[missing]
    for label, same in (("2024", True), ("2016", False)):
        expected = fill(opened, [hole], label=label)[0].mean(0)
        assert (np.abs(filled - expected).max() < 1) == same, label


def test_every_image_is_filled_under_its_own_label(run: Path, opened: Run, tmp_path: Path):
    """Two images of each label in one batch: each has the fill that it has alone under its label's prompt."""
    images = [i for year in ("2016", "2024") for i in [i for i in opened.dataset if i.labels == (year,)][:2]]
    found = impute(run, Region(masks=masks_of(tmp_path / "masks", images)), OPTIONS)
    rows = {row["image_id"]: row for row in found.table.to_pylist()}
    missing = np.zeros((32, 32), bool)
    missing[4:20, 4:12] = True
    for image in images:
        view = opened.latents.view(image.image_id)
        hole = Hole(image, np.asarray(opened.dataset.open(image)), missing, view, opened.base.factor)
        expected = fill(opened, [hole], label=image.labels[0])[0].mean(0)
        filled = np.asarray(Image.open(found.folder / rows[image.image_id]["picture"]))[missing]
        assert np.abs(filled - expected).max() < 1


@pytest.mark.slow
def test_labels_and_groups_are_in_the_key_without_fine_tuning(tiny_model: Path, tmp_path: Path):
    """The weights stay those of the base when a label is added, or groups change: results must not."""
    source = draw_subjects(tmp_path / "subjects")

    def filled() -> Imputation:
        typicality.finetune(source, "year", model=str(tiny_model), out=tmp_path / "run", dtype="fp32",
                            dataset={"group": "subject"}, finetune={"enabled": False})  # fmt: skip
        return impute(tmp_path / "run", Region(masks=tmp_path / "masks"), OPTIONS)

    masks_of(tmp_path / "masks", load_dataset(DatasetSettings(source=str(source), label="year"))[:2])
    first = filled()
    table = source / "metadata.csv"
    for i in range(15):  # of 20 images
        table.write_text(table.read_text().replace(f"2024-{i}.png,2024", f"2024-{i}.png,2030"))
    second = filled()
    assert second.folder != first.folder
    others = [{row["image_id"]: row["others"] for row in found.table.to_pylist()} for found in (first, second)]
    assert all(others[0][i] != others[1][i] for i in others[0])
    table.write_text(table.read_text().replace(",b", ",c"))
    assert {row["group"][0] for row in first.table.to_pylist()} == {"b"}
    assert {row["group"][0] for row in filled().table.to_pylist()} == {"c"}


def test_from_python_and_with_another_seed_another_place(run: Path, imputation: Imputation):
    other = typicality.impute(run, hide=0.2, samples=2, steps=2, draws=4, images=3, seed=5)
    assert other.folder != imputation.folder
    where = [{r["image_id"]: (r["x0"], r["y0"]) for r in t.to_pylist()} for t in (imputation.table, other.table)]
    assert any(where[0][i] != where[1][i] for i in where[1])


@pytest.mark.slow
def test_folds_compare_with_images_of_other_folds(tiny_model: Path, tmp_path: Path):
    """With folds all images are held out by their own model; what it has seen are those of the other folds."""
    folder = mine(tmp_path, tiny_model, folds=2, shared=0.5)
    opened = open_finished(folder, "finetune")
    seen = seen_by(opened, 1)
    assert {opened.fold_of(i) for i in seen} == {0}
    found = impute(folder, HIDE, OPTIONS, images=2)
    assert found.summary["held_out"] == 2
    with pytest.raises(SettingsError, match="--part training"):
        impute(folder, HIDE, OPTIONS, images=2, part="training")


# ------------------------------------------------------------------------------------------------ refusals


def test_a_mask_of_another_size(run: Path, opened: Run, tmp_path: Path):
    folder = masks_of(tmp_path / "masks", opened.dataset[:1])
    Image.new("L", (32, 20), 255).save(folder / f"{Path(opened.dataset[0].file_name).stem}.png")
    with pytest.raises(DatasetError, match="32 x 20 pixels, its image 32 x 32"):
        impute(run, Region(masks=folder), OPTIONS)


def test_a_mask_that_hides_everything_and_one_that_hides_nothing(run: Path, opened: Run, tmp_path: Path):
    everything = masks_of(tmp_path / "all", opened.dataset[:1], (0, 0, 32, 32))
    with pytest.raises(DatasetError, match="inverted"):
        impute(run, Region(masks=everything), OPTIONS)
    nothing = masks_of(tmp_path / "none", opened.dataset[:1], (0, 0, 0, 0))
    with pytest.raises(DatasetError, match="mark nothing"):
        impute(run, Region(masks=nothing), OPTIONS)


def test_nothing_is_marked_in_a_data_set_without_masks(run: Path):
    with pytest.raises(DatasetError, match=r"dataset\.masks=COLUMN"):
        impute(run, Region(marked=True), OPTIONS)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--masks FOLDER"),
        (["--hide", "0.2", "--where-marked"], "--hide SHARE"),
        (["--hide", "2"], "between 0 and 1"),
        (["--hide", "0.2", "--as", "2024"], "--as does not go with --hide"),
        (["--where-marked", "--as", "2025"], "'2024'"),
        (["--where-marked", "--dry-run"], "dataset.masks"),
        (["--masks", "nowhere"], "no folder"),
        (["--hide", "0.2", "--samples", "0"], "--samples"),
        (["--where-marked", "--hide-shape", "half"], "--hide-shape has no effect without --hide"),
    ],
)
def test_wrong_input_is_one_message(run: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]):
    assert command(["impute", str(run), *words]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_one_document(run: Path, capsys: pytest.CaptureFixture[str]):
    words = ["impute", str(run), "--hide", "0.2", "--samples", "2", "--sampler-steps", "2", "--draws", "4"]
    assert command([*words, "--images", "2", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n"] == 2
    assert (Path(document["folder"]) / "sheet.png").is_file()
    assert command([*words, "--images", "2", "-q"]) == 0
    assert "error of harmonic" in capsys.readouterr().out
    assert command([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["images"] == "unseen"
    assert plan["unet_evaluations_an_image"] == 2 * 3 * 2 + 2 * 4 * 2 + 4 * 3 * 3


def test_the_planned_evaluations_are_those_that_are_done(run: Path, opened: Run):
    """Counted by the denoiser while one image is filled, under options nobody else uses here."""
    from typicality.applications.impute.options import evaluations_of

    options = replace(OPTIONS, guidance=2.0, jumps=3)
    found = impute(run, HIDE, options, images=1, fresh=True)
    entry = json.loads((run / "run.json").read_text())["stages"]["impute"]
    assert entry["folder"] == found.folder.name
    assert entry["unet_evaluations"] == evaluations_of(options, True, 2)


def test_the_record_of_the_run_keeps_its_settings(run: Path):
    before = json.loads((run / "run.json").read_text())["settings"]
    impute(run, HIDE, OPTIONS, images=1, settings=settings_for(run, seed=9))
    assert json.loads((run / "run.json").read_text())["settings"] == before


def test_latents_of_known_cells_come_from_the_neutral_image(opened: Run):
    """What is encoded is a function of visible pixels, and known cells of every sample are just that."""
    own = holes(opened)[:1]
    z = encode(opened.denoiser, [own[0].neutral], opened.latents)
    states = opened.denoiser.encode_prompts(opened.prompts.of_all(["2016"]))
    found = sample_latents(opened.denoiser, own, z, states, [1], OPTIONS, 0, 8)
    known = ~torch.from_numpy(own[0].cells)
    for sample in found[0]:
        assert torch.equal(sample[:, known], z[0][:, known])
        assert not torch.equal(sample[:, ~known], z[0][:, ~known])
