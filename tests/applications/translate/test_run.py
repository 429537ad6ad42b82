"""Translations of a run: what is written, what is not done again, and what the numbers mean."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import typicality
from tests.applications.redesigned import SUBJECTS, draw_subjects, mine
from typicality.api import settings_for
from typicality.applications.translate.methods import TranslateOptions, translate_latents
from typicality.applications.translate.pictures import change_picture, sheet, strip, translated_pixels
from typicality.applications.translate.run import (
    SCHEMA,
    Translation,
    read_latents,
    safe,
    translate,
    translate_all_pairs,
    translate_images,
    translate_pair,
)
from typicality.cli.app import run as command
from typicality.errors import DatasetError, InterruptedRun, OutputError, SettingsError
from typicality.model.crossfit import folds_of
from typicality.progress import Progress
from typicality.rescoring import rival_labels, score_latents
from typicality.run import open_finished

pytestmark = pytest.mark.slow

OPTIONS = TranslateOptions("delta", guidance=5.0, steps=3, draws=4)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mine(tmp_path_factory.mktemp("translate"), tiny_model)


@pytest.fixture(scope="module")
def translation(run: Path) -> Translation:
    return translate(run, "2016", "2024", OPTIONS, images=6)


def test_a_row_a_translated_image(run: Path, translation: Translation):
    table = translation.table
    assert table.schema == SCHEMA
    assert table.num_rows == 6 == translation.summary["n"]
    assert set(table["from"].to_pylist()) == {"2016"}
    assert pq.read_table(translation.folder / "translations.parquet").equals(table)
    for row in table.to_pylist():
        picture = Image.open(translation.folder / row["picture"])
        assert picture.size == (3 * 32 + 2 * 4, 32)
        assert row["change"] == pytest.approx(row["after_to"] - row["before_to"], abs=1e-6)
        assert row["flipped"] == (row["label_after"] == "2024")
        assert all(row[f"{side}_{label}_se"] >= 0 for side in ("before", "after") for label in ("from", "to"))
        for box in row["changes"]:
            assert 0 <= box["x0"] < box["x1"] <= 32
            assert 0 <= box["y0"] < box["y1"] <= 32
    assert json.loads((translation.folder / "summary.json").read_text()) == translation.summary


def test_latents_before_are_the_runs_own(run: Path, translation: Translation):
    opened = open_finished(run, "finetune")
    for image_id, (before, after) in read_latents(translation.folder).items():
        torch.testing.assert_close(before, opened.latents.get(image_id))
        assert (after - before).abs().max() > 0


def test_the_same_noise_on_both_sides(run: Path):
    """The source scored twice gives the same number, and one that the run's own scorer gives for that purpose."""
    from typicality.passes import scorer
    from typicality.scoring.scorer import Job

    opened = open_finished(run, "finetune")
    ids = sorted(i.image_id for i in opened.dataset)[:3]
    z, labels = opened.latents.stack(ids), opened.dataset.labels
    first, second = (score_latents(opened, opened.denoiser, ids, z, labels, 4, "p") for _ in range(2))
    usual = scorer(opened, "p", 4).score([Job(i, labels) for i in ids])
    for row in usual:
        assert first[row.image_id][row.label].mean == second[row.image_id][row.label].mean
        assert first[row.image_id][row.label].mean == pytest.approx(row.mean, rel=1e-3, abs=1e-7)


def test_what_is_done_is_not_done_again(run: Path, translation: Translation, monkeypatch: pytest.MonkeyPatch):
    """More images add to those that are there; the same number does nothing."""
    before = {p: p.stat().st_mtime_ns for p in (translation.folder / "pictures").iterdir()}
    more = translate(run, "2016", "2024", OPTIONS, images=9)
    assert more.folder == translation.folder
    assert more.table.num_rows == 9
    assert {p: p.stat().st_mtime_ns for p in before} == before
    monkeypatch.setattr("typicality.applications.translate.run.translate_latents", None)  # nothing may call it
    assert translate(run, "2016", "2024", OPTIONS, images=9).table.equals(more.table)


@pytest.mark.parametrize("changed", [{"mine": {"patch": 12}}, {"score": {"protocol": "uniform"}}])
def test_what_a_translation_depends_on_is_in_its_key(run: Path, changed: dict):
    """Boxes have the size of patches, and scores come from the protocol's draws: neither may be read from before."""
    options = TranslateOptions("sdedit", steps=2, draws=4)
    first = translate(run, "2016", "2024", options, images=1)
    other = translate(run, "2016", "2024", options, images=1, settings=settings_for(run, **changed))
    assert first.folder != other.folder


def test_labels_and_groups_are_in_the_key_without_fine_tuning(tiny_model: Path, tmp_path: Path):
    """The weights stay those of the base when a label is added, or groups change: results must not."""
    source = draw_subjects(tmp_path / "subjects")
    options = TranslateOptions("sdedit", steps=2, draws=4)

    def translated() -> Translation:
        typicality.finetune(source, "year", model=str(tiny_model), out=tmp_path / "run", dtype="fp32",
                            dataset={"group": "subject"}, finetune={"enabled": False})  # fmt: skip
        return translate(tmp_path / "run", "2016", "2024", options, images=40)

    first = translated()
    table = source / "metadata.csv"
    for i in range(15):  # of 20 images
        table.write_text(table.read_text().replace(f"2024-{i}.png,2024", f"2024-{i}.png,{2030 + i % 3}"))
    second = translated()
    assert second.folder != first.folder
    assert second.table.equals(translate(tmp_path / "run", "2016", "2024", options, images=40, fresh=True).table)
    table.write_text(table.read_text().replace(",b", ",c"))
    assert {row["group"][0] for row in first.table.to_pylist()} == {"b"}
    assert {row["group"][0] for row in translated().table.to_pylist()} == {"c"}


def test_an_image_is_translated_from_its_label_to_the_other(run: Path):
    """The prompts by hand, in their order: null, source, target."""
    opened = open_finished(run, "finetune")
    images = [i for i in opened.dataset if i.labels == ("2016",)][:2]
    ids = [i.image_id for i in images]
    z = opened.latents.stack(ids)
    for method in ("delta", "sdedit"):
        options = TranslateOptions(method, steps=2, guidance=5.0)
        before, after = translate_images(opened, opened.denoiser, images, "2016", "2024", options)
        prompts = [opened.settings.prompt.null, opened.prompts.of("2016"), opened.prompts.of("2024")]
        states = opened.denoiser.encode_prompts(prompts)
        expected = translate_latents(opened.denoiser, z, ids, states, options, opened.settings.seed)
        torch.testing.assert_close(before, z)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_errors_are_those_of_groups(run: Path):
    """All images are of two subjects: the error of 20 images is that of two numbers, (a - b) / 2 in size."""
    opened = open_finished(run, "finetune")
    images = tuple(replace(i, group="even" if int(i.group[1:]) % 2 == 0 else "odd") for i in opened.dataset)
    opened.dataset = replace(opened.dataset, images=images)
    found = translate_pair(opened, "2016", "2024", TranslateOptions("sdedit", steps=2, draws=4, strength=0.2))
    change = {row["image_id"]: row["change"] for row in found.table.to_pylist()}
    groups = {i.image_id: i.group for i in images}
    means = [np.mean([c for i, c in change.items() if groups[i] == name]) for name in ("even", "odd")]
    assert len(change) == SUBJECTS
    assert found.summary["mean_change_se"] == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-3)


def test_fewer_images_after_more_are_fewer_in_the_table(run: Path):
    """Nine were translated; asked for the first three, the table and every number are of those three."""
    options = TranslateOptions("sdedit", steps=2, draws=4, strength=0.3)
    more = translate(run, "2016", "2024", options, images=9)
    fewer = translate(run, "2016", "2024", options, images=3)
    assert fewer.folder == more.folder
    assert fewer.table.num_rows == fewer.summary["n"] == sum(fewer.summary["labels_after"].values()) == 3
    assert fewer.table["image_id"].to_pylist() == translate(
        run, "2016", "2024", options, images=3, fresh=True
    ).table["image_id"].to_pylist()  # fmt: skip


def test_a_killed_translation_ends_like_one_that_never_was(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped after its first shard of 4 images, then continued: the rows are those of one go, up to rounding."""
    import typicality.applications.translate.run as module

    options = TranslateOptions("sdedit", steps=2, draws=4)
    whole = translate(run, "2024", "2016", options, images=8)
    kept = whole.table.to_pylist()
    monkeypatch.setattr(module, "SHARD_IMAGES", 4)
    write = module._write_shard

    def once(*arguments):
        if any((whole.folder / "shards").glob("*.parquet")):
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "_write_shard", once)
    with pytest.raises(InterruptedRun, match="continues"):
        translate(run, "2024", "2016", options, images=8, fresh=True)
    monkeypatch.setattr(module, "_write_shard", write)
    again = translate(run, "2024", "2016", options, images=8)
    assert [r["image_id"] for r in again.table.to_pylist()] == [r["image_id"] for r in kept]
    for a, b in zip(again.table.to_pylist(), kept, strict=True):
        assert a["after_to"] == pytest.approx(b["after_to"], rel=1e-2, abs=1e-5)


def test_all_pairs_are_listed(run: Path):
    table = translate_all_pairs(run, TranslateOptions("sdedit", steps=2, draws=4), images=2)
    assert sorted(zip(table["from"].to_pylist(), table["to"].to_pylist(), strict=True)) == [
        ("2016", "2024"),
        ("2024", "2016"),
    ]
    assert pq.read_table(run / "translate" / "pairs.parquet").equals(table)


def test_a_pair_without_images_is_left_out(run: Path, monkeypatch: pytest.MonkeyPatch):
    """With several labels an image, one label may never occur without another."""
    monkeypatch.setattr(
        "typicality.applications.translate.run.permutations", lambda labels, n: [("2016", "2016"), ("2016", "2024")]
    )
    table = translate_all_pairs(run, TranslateOptions("sdedit", steps=2, draws=4), images=2)
    assert table["to"].to_pylist() == ["2024"]


def test_all_pairs_from_python(run: Path):
    table = typicality.translate_all_pairs(run, method="sdedit", steps=2, draws=4, images=1)
    assert table["n"].to_pylist() == [1, 1]


def test_the_record_of_the_run_keeps_its_settings(run: Path):
    """A translation with another seed does not change what run.json says of the run."""
    before = json.loads((run / "run.json").read_text())["settings"]
    assert command(["translate", str(run), "--from", "2016", "--to", "2024", "--images", "1", "--seed", "7",
                    "--sampler-steps", "2", "--draws", "4", "-q"]) == 0  # fmt: skip
    assert json.loads((run / "run.json").read_text())["settings"] == before


@pytest.fixture(scope="module")
def folded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mine(tmp_path_factory.mktemp("folded"), tiny_model, folds=2, shared=0.5)


def test_another_seed_does_not_move_images_to_models_that_have_seen_them(folded: Path):
    """Folds are a hash with the seed of fine-tuning. Another seed draws other noise; who has seen whom is as before."""
    own = open_finished(folded, "finetune")
    other = open_finished(folded, "finetune", settings_for(folded, seed=7))
    folds = folds_of(own.dataset, 2, own.settings.seed)
    assert folds != folds_of(own.dataset, 2, 7)
    for run in (own, other):
        assert {i.image_id: run.fold_of(i.image_id) for i in run.dataset} == folds
    assert other.finetune_key == own.finetune_key == own.directory.record["stages"]["finetune"]["key"]
    assert other.score_folder("p", 4) != own.score_folder("p", 4)


def test_settings_that_would_misstate_what_was_held_out_are_refused(run: Path, capsys: pytest.CaptureFixture[str]):
    words = ["translate", str(run), "--from", "2016", "--to", "2024", "--images", "1", "-q"]
    for setting in ("finetune.held_out=0.5", "finetune.folds=2", "dataset.group=year"):
        assert command([*words, "--set", setting]) == 2
        assert setting.partition("=")[0] in capsys.readouterr().err


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_the_report_of_a_mined_run_shows_translations(run: Path):
    translate(run, "2016", "2024", OPTIONS, images=5)
    page = (run / "index.html").read_text(encoding="utf-8")
    assert 'id="translations"' in page
    assert "of 5 are then taken for" in page


def test_where_there_is_no_report_yet_the_user_is_told(run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((copy / "run.json").read_text())
    del record["stages"]["mine"]
    (copy / "run.json").write_text(json.dumps(record))
    (copy / "index.html").unlink()
    heard = Heard()
    translate(copy, "2016", "2024", OPTIONS, images=2, progress=heard)
    assert any("typicality mine" in line for line in heard.said)
    assert not (copy / "index.html").exists()


def test_the_command_prints_one_document(run: Path, capsys: pytest.CaptureFixture[str]):
    words = ["translate", str(run), "--from", "2016", "--to", "2024", "--method", "pnp", "--images", "2"]
    assert command([*words, "--sampler-steps", "2", "--draws", "4", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["method"] == "pnp"
    assert document["n"] == 2
    assert (Path(document["folder"]) / "strips.png").is_file()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--from", "2016"], "--all-pairs"),
        ([], "--all-pairs"),
        (["--from", "2016", "--to", "2025"], "'2024'"),
        (["--from", "2016", "--to", "2025", "--dry-run"], "'2024'"),
        (["--from", "2016", "--to", "2016"], "two labels"),
        (["--from", "2016", "--to", "2024", "--strength", "2"], "--strength"),
        (["--from", "2016", "--to", "2024", "--inject", "0.1"], "--inject has no effect"),
        (["--all-pairs", "--method", "mean", "--sampler-steps", "9", "--dry-run"], "--sampler-steps has no effect"),
    ],
)
def test_wrong_input_is_one_message(run: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]):
    assert command(["translate", str(run), *words]) == 2
    assert complaint in capsys.readouterr().err


def test_steps_of_a_method_without_steps_are_refused(run: Path):
    options = TranslateOptions("mean", steps=9, draws=4)
    with pytest.raises(SettingsError, match="--sampler-steps has no effect with --method mean"):
        translate(run, "2016", "2024", options, images=1)
    with pytest.raises(SettingsError, match="--sampler-steps has no effect with --method mean"):
        translate_all_pairs(run, options, images=1)
    assert translate(run, "2016", "2024", replace(options, steps=25), images=1).summary["n"] == 1


def test_a_folder_that_is_no_run(tmp_path: Path):
    with pytest.raises(OutputError, match=r"run\.json"):
        translate(tmp_path, "2016", "2024", OPTIONS)


def test_a_label_that_the_run_does_not_have(run: Path):
    with pytest.raises(DatasetError, match="1999"):
        translate(run, "1999", "2024", OPTIONS)


def test_a_label_nobody_has_alone(run: Path):
    """Every image of 2016 is one of 2024 as well: there is none that would have to become one."""
    opened = open_finished(run, "finetune")
    both = tuple(replace(i, labels=("2016", "2024")) if "2016" in i.labels else i for i in opened.dataset)
    opened.dataset = replace(opened.dataset, images=both)
    with pytest.raises(DatasetError, match="no image has the label '2016' without '2024'"):
        translate_pair(opened, "2016", "2024", OPTIONS)


# ---------------------------------------------------------------------------------------------------- pictures


def test_an_unmoved_latent_gives_the_source_pixel_for_pixel(run: Path):
    opened = open_finished(run, "finetune")
    z = opened.latents.stack([opened.dataset[0].image_id])
    source = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(translated_pixels(opened.denoiser, source, z, z), source)
    decoded = opened.denoiser.decode_latents(z).clamp(-1, 1)
    torch.testing.assert_close(translated_pixels(opened.denoiser, source, z, z, 0.0), decoded)


def test_the_change_map_is_orange_where_typicality_rose():
    """A map that rises on the left and falls on the right, over white."""
    change = np.array([[1.0, -1.0]])
    picture = change_picture(change, np.full((8, 16, 3), 255, dtype=np.uint8)).astype(int)
    assert picture[4, 0, 0] > picture[4, 0, 2] + 50
    assert picture[4, 15, 2] > picture[4, 15, 0] + 50
    flat = change_picture(np.zeros((2, 2)), np.full((8, 8, 3), 255, dtype=np.uint8))
    assert (flat == 255).all()


def test_strips_lie_side_by_side():
    pixels = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 100, 200)]
    one = strip(*pixels)
    assert one.size == (32, 8)
    assert sheet([one] * 5).size == (4 * (32 + 12), 2 * 16)


def test_labels_with_odd_characters_become_names():
    assert safe("a/b c:д") == "a-b-c-д"


def test_many_labels_are_thinned_but_the_two_stay():
    labels = [f"{i:02}" for i in range(40)]
    chosen = rival_labels(labels, "07", "33")
    assert len(chosen) == 12
    assert {"07", "33"} <= set(chosen)
    assert list(chosen) == sorted(chosen)
    assert rival_labels(labels[:5], "00", "01") == tuple(labels[:5])
    of_each = [rival_labels(labels, label, label) for label in labels]
    assert {len(found) for found in of_each} == {12}
    assert set.union(*map(set, of_each[:20])) == set(labels)


def test_the_fixture_has_all_subjects(run: Path):
    assert len({i.group for i in open_finished(run, "mine").dataset}) == SUBJECTS
