"""Exports open in the tools they are for, hold every element at its place, and never replace what is not theirs."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.applications.mined import STALE, change_record, note_mined, write_mined
from typicality.applications.export import MARKER, WRITERS, Mined, _new_folder, export, safe
from typicality.errors import InputError, OutputError
from typicality.store import SCHEMA_VERSION


@pytest.fixture(scope="module")
def mined(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mined(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


def rows(mined: Path) -> list[dict]:
    return pq.read_table(mined / "elements.parquet").to_pylist()


def test_coco_opens_in_pycocotools(mined: Path, tmp_path: Path, capsys) -> None:
    """All 32 images with their original sizes, 12 elements in 4 categories, boxes as [x, y, width, height]."""
    coco_of = pytest.importorskip("pycocotools.coco").COCO
    path = export(mined, "coco", tmp_path / "coco.json")
    coco = coco_of(str(path))
    capsys.readouterr()
    assert (len(coco.getImgIds()), len(coco.getAnnIds()), len(coco.getCatIds())) == (32, 12, 4)
    blue = coco.getCatIds(supNms=["blue"])
    assert [c["name"] for c in coco.loadCats(blue)] == ["blue/0", "blue/1"]
    best = coco.loadAnns(coco.getAnnIds(catIds=blue[:1]))[1]
    assert best["bbox"] == [4, 2, 12, 12]
    assert best["area"] == 144
    assert best["score"] == pytest.approx(0.04)
    assert best["attributes"]["specificity"] is None  # NaN is no JSON
    image = coco.loadImgs([best["image_id"]])[0]
    assert image["image_id"] == rows(mined)[2]["image_id"]
    assert {(i["width"], i["height"]) for i in coco.loadImgs(coco.getImgIds())} == {(40, 40), (72, 40)}


def test_coco_detections_can_be_evaluated_against_themselves(mined: Path, tmp_path: Path, capsys) -> None:
    """COCOeval of the elements as detections of themselves finds them all: average precision 1."""
    tools = pytest.importorskip("pycocotools.cocoeval")
    coco_of = pytest.importorskip("pycocotools.coco").COCO
    truth = coco_of(str(export(mined, "coco", tmp_path / "coco.json")))
    kept = ("image_id", "category_id", "bbox", "score")
    found = truth.loadRes([{k: a[k] for k in kept} for a in truth.dataset["annotations"]])
    evaluation = tools.COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_tables_carry_the_clusters(mined: Path, tmp_path: Path) -> None:
    parquet = pq.read_table(export(mined, "parquet", tmp_path / "e.parquet"))
    csv = pyarrow.csv.read_csv(export(mined, "csv", tmp_path / "e.csv"))
    assert parquet.num_rows == csv.num_rows == 12
    assert parquet["cluster_rank"].to_pylist() == parquet["cluster"].to_pylist()
    assert csv["cluster_adjusted_p_value"].to_pylist() == pytest.approx([0.02, 0.12] * 6)
    assert csv["file_name"].to_pylist() == parquet["file_name"].to_pylist()


@pytest.mark.parametrize("to", ["parquet", "csv", "png"])
def test_what_is_unknown_is_null_in_tables(mined: Path, tmp_path: Path, to: str) -> None:
    """The specificity of elements and clusters is NaN in the run's own tables; in text it is nothing."""
    path = export(mined, to, tmp_path / "out")
    text = path / "index.csv" if to == "png" else path
    table = pq.read_table(path) if to == "parquet" else pyarrow.csv.read_csv(text)
    assert table["specificity"].null_count == table.num_rows == 12
    assert table["typicality"].null_count == 0
    if to != "png":
        assert table["cluster_mean_specificity"].null_count == 12
    if to != "parquet":
        assert "nan" not in text.read_text()


def test_hf_opens_in_datasets(mined: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = export(mined, "hf", tmp_path / "hf")
    data = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 12
    row = data[0]
    assert row["image"].size == (row["width"], row["height"])
    first = rows(mined)[0]
    assert row["image_id"] == first["image_id"]
    assert list(row["elements"][0]["bbox"]) == [0, 0, 12, 12]
    assert row["elements"][0]["typicality"] == pytest.approx(0.06)
    assert row["elements"][0]["specificity"] is None


def test_fiftyone_folder_follows_its_documented_format(mined: Path, tmp_path: Path) -> None:
    """labels.json: classes, and for each file detections with a class number and a box in shares of the image."""
    folder = export(mined, "fiftyone", tmp_path / "fo")
    document = json.loads((folder / "labels.json").read_text())
    assert set(document) == {"classes", "labels"}
    assert document["classes"] == ["blue", "red"]
    assert set(document["labels"]) == {p.stem for p in (folder / "data").iterdir()}
    for row in rows(mined):
        (found,) = document["labels"][row["image_id"]]
        assert document["classes"][found["label"]] == row["label"]
        with PIL.Image.open(folder / "data" / f"{row['image_id']}.png") as image:
            size = image.size
        box = np.array(found["bounding_box"]) * [*size, *size]
        assert box == pytest.approx([row["x0"], row["y0"], 12, 12])
        assert 0 <= min(found["bounding_box"]) <= max(found["bounding_box"]) <= 1


@pytest.mark.slow
def test_fiftyone_imports_it(mined: Path, tmp_path: Path) -> None:
    """Where FiftyOne is installed; `.ci/run` does the same on a real run, in an environment that has it."""
    readers = pytest.importorskip("fiftyone.utils.data")
    folder = export(mined, "fiftyone", tmp_path / "fo")
    importer = readers.FiftyOneImageDetectionDatasetImporter(dataset_dir=str(folder))
    with importer:
        found = [d for _, _, detections in importer for d in detections.detections]
    assert len(found) == 12
    assert {d.label for d in found} == {"blue", "red"}


def test_png_holds_the_pixels_of_each_element(mined: Path, tiny_folder: Path, tmp_path: Path) -> None:
    folder = export(mined, "png", tmp_path / "png")
    index = pyarrow.csv.read_csv(folder / "index.csv").to_pylist()
    assert len(index) == len(list(folder.rglob("*.png"))) == 12
    row = index[3]
    assert row["picture"].startswith("blue/001/0001-0003-")
    with PIL.Image.open(tiny_folder / row["file_name"]) as original, PIL.Image.open(folder / row["picture"]) as shown:
        expected = original.convert("RGB").crop((row["x0"], row["y0"], row["x1"], row["y1"]))
        assert shown.tobytes() == expected.tobytes()


def test_exported_pictures_lose_their_exif(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x010F] = "SECRET CAMERA"
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(2):
            image = PIL.Image.new("RGB", (48, 48), (40 * k, 90, ord(label)))
            image.save(tmp_path / "data" / label / f"{k}.jpg", exif=exif)
    run = write_mined(tmp_path / "run", tmp_path / "data", per_label=2)
    for to in ("png", "fiftyone", "hf"):
        folder = export(run, to)
        assert folder == run / "export" / to
        assert not any(b"SECRET" in p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("to", list(WRITERS))
def test_nothing_is_replaced_without_force(mined: Path, tmp_path: Path, to: str) -> None:
    path = export(mined, to, tmp_path / "out")
    before = sorted(p.name for p in path.rglob("*")) if path.is_dir() else path.read_bytes()
    with pytest.raises(OutputError, match="--force"):
        export(mined, to, path)
    assert export(mined, to, path, force=True) == path
    assert (sorted(p.name for p in path.rglob("*")) if path.is_dir() else path.read_bytes()) == before


def test_force_does_not_replace_what_no_export_wrote(mined: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="was not written by"):
        export(mined, "png", tmp_path / "mine", force=True)
    with pytest.raises(OutputError, match="is a folder"):
        export(mined, "coco", tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (export(mined, "png", tmp_path / "empty") / MARKER).is_file()


@pytest.mark.parametrize("to", ["coco", "parquet", "csv"])
def test_force_does_not_replace_a_file_that_no_export_wrote(mined: Path, tmp_path: Path, to: str) -> None:
    """Notes, another COCO file, and the run's own table, which begins like an exported one; any export is replaced."""
    (tmp_path / "notes.csv").write_text("my notes\n")
    (tmp_path / "nothing.csv").touch()
    (tmp_path / "boxes.json").write_text('{"info": {}, "images": []}')
    (tmp_path / "list.json").write_text("{1, 2}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copy(mined / "elements.parquet", tmp_path)
    for path in list(tmp_path.iterdir()):
        before = path.read_bytes()
        with pytest.raises(OutputError, match="was not written by"):
            export(mined, to, path, force=True)
        assert path.read_bytes() == before
    for earlier in ("coco", "parquet", "csv"):
        path = export(mined, earlier, tmp_path / f"export-{earlier}")
        assert export(mined, to, path, force=True) == path


def test_an_export_that_fails_leaves_nothing(mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("typicality.applications.export.png", fail)
    with pytest.raises(OutputError, match=r"cannot write .*out: disk full"):
        export(mined, "png", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", list(WRITERS))
def test_a_place_below_a_file_is_named(mined: Path, tmp_path: Path, to: str) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="is no folder; choose a place"):
        export(mined, to, tmp_path / "file" / "x")
    assert (tmp_path / "file").read_text() == "a file"


def test_a_folder_that_is_lost_on_the_way_is_no_bug(mined: Path, tmp_path: Path) -> None:
    """Where a file has taken the place of the folder's parent since it was checked."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="cannot write"),
        _new_folder(tmp_path / "file" / "x", "png", Mined(mined, {})),
    ):
        pass


def test_errors_say_what_to_do(mined: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'coco'"):
        export(mined, "cocoo", tmp_path / "x")
    with pytest.raises(OutputError, match=r"no run\.json"):
        export(tmp_path, "coco")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(OutputError, match=r"no run\.json that a run wrote"):
        export(tmp_path, "coco")
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "settings": {}, "stages": {}}))
    with pytest.raises(OutputError, match=r"no elements\.parquet: it has not been mined"):
        export(tmp_path, "coco")
    (tmp_path / "elements.parquet").touch()
    with pytest.raises(OutputError, match=r"no clusters\.parquet: it has not been mined"):
        export(tmp_path, "coco")


@pytest.mark.parametrize("said", STALE)
def test_elements_of_an_earlier_state_are_not_exported(tiny_folder: Path, tmp_path: Path, said: str) -> None:
    """After `score` of fewer images, or with other settings, elements.parquet is not what run.json describes."""
    run = write_mined(tmp_path / "run", tiny_folder)
    change_record(run, note_mined)
    export(run, "csv")
    change_record(run, STALE[said])
    for to in ("csv", "coco"):
        with pytest.raises(OutputError, match=rf"{said}.*`typicality mine {run}`"):
            export(run, to, tmp_path / f"elements.{to}")
    assert not list(tmp_path.glob("elements.*"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.b/ü 1.png", "1"), ("../../etc/passwd", "passwd"), ("c:\\x\\é.png", "image"), ("a" * 99, "a" * 60)],
)
def test_names_are_safe(name: str, stem: str) -> None:
    assert safe(name) == stem


def test_pictures_are_plain(tmp_path: Path) -> None:
    from typicality.applications.export import png

    image = PIL.Image.new("P", (4, 4))
    image.info["comment"] = "SECRET"
    with PIL.Image.open(io.BytesIO(png(image))) as again:
        assert (again.mode, again.info) == ("RGB", {})
