"""The whole job on a tiny model and a tiny folder: same seed, same tables, whatever happened in between."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import typicality
from tests.conftest import draw
from typicality import pipeline
from typicality.errors import InputError, OutputError
from typicality.evaluation.elements import elements
from typicality.pipeline import Result

QUICK = {
    "finetune": {"steps": 4, "batch_size": 8, "validate_every": 2},
    "score": {"draws": 2, "refine_draws": 4, "shard_images": 8},
    "mine": {"noises": 2, "share": 1.0, "per_label": 40},
    "dtype": "fp32",
}


def mine(source: Path, model: Path, out: Path, **changes: dict) -> Result:
    options = {
        name: (value | changes.pop(name, {}) if isinstance(value, dict) else value) for name, value in QUICK.items()
    }
    return typicality.mine(source, "folder", model=str(model), out=out, **options, **changes)


@pytest.fixture(scope="module")
def result(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return mine(tiny_folder, tiny_model, tmp_path_factory.mktemp("runs") / "run")


def same(a: Result, b: Result, tolerance: float = 1e-3) -> None:
    """The same boxes in the same order, scores within the tolerance."""
    assert a.elements.num_rows == b.elements.num_rows
    for name in a.elements.column_names:
        left, right = a.elements[name].to_pylist(), b.elements[name].to_pylist()
        if name in ("typicality", "standard_error", "lower_bound", "specificity"):
            for x, y in zip(left, right, strict=True):
                assert (math.isnan(x) and math.isnan(y)) or x == pytest.approx(y, rel=tolerance, abs=1e-6)
        else:
            assert left == right, name


def test_the_run_directory_holds_what_is_promised(result: Result) -> None:
    for name in (
        "run.json",
        "model",
        "scores",
        "elements.parquet",
        "clusters.parquet",
        "features.npy",
        "index.faiss",
        "index.html",
    ):
        assert (result.folder / name).exists(), name
    record = json.loads((result.folder / "run.json").read_text())
    for stage in ("latents", "finetune", "score", "refine", "mine", "report"):
        entry = record["stages"][stage]
        assert entry["state"] == "done"
        assert entry["seconds"] >= 0
        assert entry["peak_memory_mb"] > 0
    assert record["stages"]["score"]["unet_evaluations"] == 32 * 2 * 2
    assert record["dataset"]["fingerprint"]
    assert record["model"]["weights_hash"]
    assert record["model"]["engine"] == "torch"  # so few images are not worth compiling
    assert not [p for p in result.folder.rglob("*") if p.suffix in (".pt", ".bin", ".pkl", ".tmp")]


def test_tables_are_consistent(result: Result) -> None:
    elements, clusters = result.elements.to_pylist(), result.clusters.to_pylist()
    sizes = {(c["label"], c["cluster"]): c["size"] for c in clusters}
    for (label, cluster), size in sizes.items():
        members = [e for e in elements if (e["label"], e["cluster"]) == (label, cluster)]
        assert len(members) == size
        assert sorted(e["rank_in_cluster"] for e in members) == list(range(size))
    for label in {e["label"] for e in elements}:
        own = [e for e in elements if e["label"] == label]
        assert [e["rank"] for e in own] == list(range(len(own)))
        assert [e["typicality"] for e in own] == sorted((e["typicality"] for e in own), reverse=True)
    assert all(math.isfinite(e["specificity"]) for e in elements)
    assert result.images.num_rows == 32


def test_boxes_lie_inside_their_images_and_do_not_overlap(result: Result) -> None:
    sizes = {i["image_id"]: (i["width"], i["height"]) for i in result.images.to_pylist()}
    by_image: dict[tuple[str, str], list[dict]] = {}
    for e in result.elements.to_pylist():
        width, height = sizes[e["image_id"]]
        assert 0 <= e["x0"] < e["x1"] <= width
        assert 0 <= e["y0"] < e["y1"] <= height
        by_image.setdefault((e["image_id"], e["label"]), []).append(e)
    for boxes in by_image.values():
        assert len(boxes) <= 5
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a["x1"] <= b["x0"] or b["x1"] <= a["x0"] or a["y1"] <= b["y0"] or b["y1"] <= a["y0"]


def test_second_run_repeats_nothing(result: Result, tiny_folder: Path, tiny_model: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in result.folder.joinpath("scores").rglob("*")}
    again = mine(tiny_folder, tiny_model, result.folder)
    assert {p: p.stat().st_mtime_ns for p in result.folder.joinpath("scores").rglob("*")} == before
    same(result, again, 0.0)


@pytest.mark.slow
def test_same_seed_in_another_place_with_another_batch_size(
    result: Result, tiny_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    same(result, mine(tiny_folder, tiny_model, tmp_path / "b", score={"batch_size": 3, "shard_images": 5}))


@pytest.mark.slow
def test_interrupted_between_stages_continues(
    result: Result, tiny_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while clustering: exit is `InterruptedRun`; the same call ends with the same tables."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "cluster_elements", stop)
        with pytest.raises(typicality.errors.InterruptedRun, match="continues"):
            mine(tiny_folder, tiny_model, tmp_path / "c")
    record = json.loads((tmp_path / "c" / "run.json").read_text())
    assert record["stages"]["mine"]["state"] == "interrupted"
    same(result, mine(tiny_folder, tiny_model, tmp_path / "c"))


@pytest.mark.slow
def test_another_patch_size_rescores_nothing(result: Result, tiny_folder: Path, tiny_model: Path) -> None:
    first = next(p for p in result.folder.joinpath("scores").iterdir() if p.name.startswith("first"))
    before = {p.name: p.stat().st_mtime_ns for p in first.iterdir()}
    other = mine(tiny_folder, tiny_model, result.folder, mine={"patch": 16})
    assert {p.name: p.stat().st_mtime_ns for p in first.iterdir()} == before
    assert set(other.elements["side"].to_pylist()) == {4}


def test_another_data_set_does_not_overwrite_a_run(result: Result, tiny_model: Path) -> None:
    with pytest.raises(OutputError, match="holds a run of"):
        typicality.mine("flags", "continent", model=str(tiny_model), out=result.folder)


def test_foreign_files_are_never_lost(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not empty"):
        mine(tiny_folder, tiny_model, tmp_path, fresh=True)  # type: ignore[arg-type]
    assert (tmp_path / "thesis.txt").exists()


def test_two_processes_cannot_write_to_one_run(result: Result, tiny_folder: Path, tiny_model: Path) -> None:
    from typicality.store import RunDirectory

    with RunDirectory(result.folder).lock(), pytest.raises(OutputError, match="another process"):
        mine(tiny_folder, tiny_model, result.folder)


@pytest.mark.slow
def test_published_protocol_needs_its_evaluations(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """100 independent draws, null and label: 200 evaluations an image; here with 6 draws, so 12."""
    paper = mine(tiny_folder, tiny_model, tmp_path / "paper", score={"protocol": "paper", "draws": 6})
    assert paper.record["stages"]["score"]["unet_evaluations"] == 32 * 2 * 6
    assert "refine" not in paper.record["stages"]
    assert set(paper.images["n_draws"].to_pylist()) == {6}


def test_classification_of_held_out_images(result: Result) -> None:
    found = typicality.classify(result.folder, draws=2)
    held_out = sum(result.images["held_out"].to_pylist())
    assert found.n == held_out > 0
    assert 0 <= found.accuracy <= 1
    assert sum(sum(row.values()) for row in found.confusion.values()) == found.n
    assert pq.read_table(result.folder / "elements.parquet").num_rows > 0


@pytest.mark.slow
def test_commands_on_a_run_say_that_the_data_set_has_grown(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """An image that came later has no latent and was scored by nobody; that is one sentence, and no KeyError."""
    source = tmp_path / "growing"
    shutil.copytree(tiny_folder, source)
    run = mine(source, tiny_model, tmp_path / "run", finetune={"steps": 1}).folder
    draw(np.random.default_rng(9), "red", (40, 40)).save(source / "red" / "later.png")
    for command in (lambda: typicality.classify(run, draws=2), lambda: elements(run, count=1, seeds=1)):
        with pytest.raises(OutputError, match="no latents of 1 of 33 images"):
            command()


def left(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mine": {"patch": 4000}}, "mine.patch"),
        ({"model": {"name": "no-such-model"}}, "no-such-model"),
        ({"finetune": {"folds": 33}}, "32 groups cannot fill 33 folds"),
        ({"prompt": {"template": "the same for {label}" + " and more" * 90}}, "prompt"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_what_cannot_work_leaves_a_finished_run_as_it_is(
    result: Result, tmp_path: Path, changes: dict, message: str, fresh: bool
) -> None:
    """Nothing is removed before that is known, and no setting is recorded that every later call would fail with."""
    folder = shutil.copytree(result.folder, tmp_path / "run")
    before = left(folder)
    with pytest.raises(InputError, match=message):
        typicality.mine(folder, fresh=fresh, offline=True, **changes)
    assert left(folder) == before
    typicality.report(folder)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_does_not_replace_the_model_that_it_starts_from(result: Result, tmp_path: Path, fresh: bool) -> None:
    folder = shutil.copytree(result.folder, tmp_path / "run")
    before = left(folder)
    with pytest.raises(InputError, match="another --out"):
        typicality.mine(folder, fresh=fresh, model=folder / "model", offline=True)
    assert left(folder) == before


@pytest.mark.slow
def test_a_data_set_that_has_lost_mined_images_is_told_apart_from_a_bug(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_folder, tmp_path / tiny_folder.name)
    folder = mine(source, tiny_model, tmp_path / "run").folder
    gone = sorted(source.rglob("*.png"))[0]
    gone.unlink()
    for command in (typicality.report, typicality.trends, typicality.localize):
        with pytest.raises(OutputError, match=rf"1 images of .* first .*{gone.name}: put them back"):
            command(folder)
    with pytest.raises(OutputError, match="leave out the settings"):
        typicality.report(folder, dataset={"max_per_label": 3})
    assert mine(source, tiny_model, folder).images.num_rows == 31


@pytest.mark.slow
def test_a_model_of_other_images_is_not_replaced(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Two folders of one name, fine-tuned only: nothing was mined, so the list of what the model knows tells."""
    other, rng = tmp_path / tiny_folder.name, np.random.default_rng(7)
    for label in ("blue", "red"):
        (other / label).mkdir(parents=True)
        for i in range(16):
            draw(rng, label, (40, 40)).save(other / label / f"{i}.png")
    options = {name: QUICK[name] for name in ("finetune", "dtype")} | {"model": str(tiny_model)}
    typicality.finetune(tiny_folder, "folder", out=tmp_path / "run", **options)
    before = left(tmp_path / "run" / "model")
    with pytest.raises(OutputError, match="none of which is in this data set"):
        typicality.finetune(other, "folder", out=tmp_path / "run", **options)
    assert left(tmp_path / "run" / "model") == before
