"""Choosing columns, merging identical files, splits, ground truth, and errors that say what to do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from typicality.dataset.load import merged_groups
from typicality.dataset.split import is_held_out
from typicality.errors import DatasetError

from .conftest import Load, Write, encoded
from .test_labels import table


def test_identical_files_become_one_record_with_all_their_labels(write: Write, load: Load) -> None:
    data = load(write("cats/1.png", 1, "cats/copy.png", 1, "dogs/z.png", 1, "dogs/2.png", 2))
    assert len(data) == 2
    (duplicate,) = data.duplicates
    assert duplicate.file_names == ("cats/1.png", "cats/copy.png", "dogs/z.png")
    assert duplicate.labels == ("cats", "dogs")
    (merged,) = (i for i in data if i.image_id == duplicate.image_id)
    assert merged.file_name == "cats/1.png"
    assert merged.labels == ("cats", "dogs")
    assert any("under different labels" in w for w in data.warnings)


def test_identical_files_of_one_label_are_no_conflict(write: Write, load: Load) -> None:
    data = load(write("cats/1.png", 1, "cats/copy.png", 1, "dogs/2.png", 2))
    assert len(data.duplicates) == 1
    assert not data.warnings


def test_images_are_sorted_and_the_fingerprint_sees_labels(write: Write, load: Load) -> None:
    root = write("a/1.png", 1, "a/2.png", 2, "b/3.png", 3)
    data = load(root)
    assert [i.image_id for i in data] == sorted(i.image_id for i in data)
    assert data[0] is data.images[0]
    assert len(data[1:]) == 2
    (root / "a" / "2.png").rename(root / "b" / "2.png")
    assert load(root).fingerprint != data.fingerprint


def test_relatives_stay_on_one_side_of_every_split(tmp_path: Path, load: Load) -> None:
    data = load(table(tmp_path, "c,who", *(f"{'ab'[n % 2]},p{n // 4}" for n in range(80))), label="c", group="who")
    training, held_out = data.held_out()
    assert len(training) + len(held_out) == 80
    assert not {i.group for i in training} & {i.group for i in held_out}
    assert all(is_held_out(i.group) for i in held_out)


def test_groups_that_share_an_image_are_relatives(tmp_path: Path, load: Load) -> None:
    """p1 and p2 hold the same bytes, and so do p2 and p3: if one is held out, all of them are."""
    rows = [f"{'ab'[n % 2]},p{n // 2}" for n in range(12)]
    source = table(tmp_path, "c,who", *rows)
    for copy, of in ((4, 2), (6, 5)):
        (tmp_path / f"{copy}.png").write_bytes((tmp_path / f"{of}.png").read_bytes())
    data = load(source, label="c", group="who")
    groups = {image.file_name: image.group for image in data}
    assert groups == {f"{n}.png": "p1" if 2 <= n < 8 else f"p{n // 2}" for n in range(12) if n not in (4, 6)}
    assert any(w.startswith("3 groups have images in common") and "count as 1" in w for w in data.warnings)
    assert merged_groups([{"a"}, {"b", "c"}, {"d", "c"}, {"e", "f"}]) == {
        "b": "b", "c": "b", "d": "b", "e": "e", "f": "e",
    }  # fmt: skip


def test_a_split_of_few_groups_leaves_no_side_empty(tmp_path: Path, load: Load) -> None:
    """Six exposures: by chance (0.8 to the 6th, 26%) no hash falls below the share of 0.2."""
    for prefix in range(8):
        source = table(tmp_path, "c,who", *(f"{'ab'[n % 2]},{prefix}-{n // 2}" for n in range(6)))
        data = load(source, label="c", group="who")
        for share in (0.01, 0.2, 0.99):
            training, held_out = data.held_out(share)
            assert training
            assert held_out
        assert data.held_out(0.0)[1] == []


def test_without_a_group_every_image_is_its_own(write: Write, load: Load) -> None:
    assert all(i.group == i.image_id for i in load(write("a/1.png", 1, "b/2.png", 2)))


@pytest.mark.parametrize("cell", ['"[[1, 2, 5.5, 6], [-3, 0, 4, 99]]"', '"[[-3,0,4,99],[1,2,5.5,6]]"'])
def test_boxes_cover_whole_pixels_inside_the_image(cell: str, tmp_path: Path, load: Load) -> None:
    data = load(table(tmp_path, "c,boxes", f"a,{cell}", "b,"), label="c", boxes="boxes")
    boxes = {i.file_name: i.boxes for i in data}
    assert boxes == {"0.png": ((0, 0, 4, 8), (1, 2, 6, 6)), "1.png": ()}


def test_boxes_from_four_columns_and_from_coco(tmp_path: Path, load: Load) -> None:
    source = table(tmp_path, "c,x0,y0,x1,y1", "a,1,2,5,6", "b,,,,")
    by_columns = load(source, label="c", boxes="x0,y0,x1,y1")
    coco = {
        "images": [{"id": 7, "file_name": "elsewhere/0.png"}],
        "annotations": [{"image_id": 7, "bbox": [1, 2, 4, 4]}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    by_coco = load(source, label="c", boxes="truth.json")
    assert [i.boxes for i in by_columns] == [i.boxes for i in by_coco]
    assert sorted(i.boxes for i in by_coco) == [(), ((1, 2, 5, 6),)]


def test_boxes_of_coco_have_the_names_of_their_categories(tmp_path: Path, load: Load) -> None:
    """Two boxes in one place, of two categories, are two; a box without a category has no name."""
    source = table(tmp_path, "c", "a", "b")
    coco = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
        "annotations": [
            {"image_id": 1, "category_id": 5, "bbox": [1, 2, 4, 4]},
            {"image_id": 1, "category_id": 3, "bbox": [1, 2, 4, 4]},
            {"image_id": 1, "bbox": [0, 0, 2, 2]},
            {"image_id": 2, "bbox": [0, 0, 2, 2]},
        ],
        "categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    first, second = sorted(load(source, label="c", boxes="truth.json"), key=lambda i: i.file_name)
    assert first.boxes == ((0, 0, 2, 2), (1, 2, 5, 6), (1, 2, 5, 6))
    assert first.box_labels == ("", "a", "b")
    assert (second.boxes, second.box_labels) == (((0, 0, 2, 2),), ())


def test_boxes_of_width_and_height_are_refused(tmp_path: Path, load: Load) -> None:
    with pytest.raises(DatasetError, match="not width and height"):
        load(table(tmp_path, "c,b", 'a,"[[5, 5, 3, 3]]"', "b,"), label="c", boxes="b")


def test_the_only_possible_column_is_the_label(tmp_path: Path, load: Load) -> None:
    source = table(tmp_path, "kind,who", "a,1", "b,2")
    assert load(source, group="who").label == "kind"
    with pytest.raises(DatasetError, match="'kind', 'who'"):
        load(source)


def test_folder_labels_answer_to_label_too(write: Write, load: Load) -> None:
    root = write("a/1.png", 1, "b/2.png", 2)
    assert {load(root, label=name).label for name in (None, "label", "folder")} == {"folder"}


def test_missing_paths_are_unreadable_rows_not_errors(tmp_path: Path, load: Load) -> None:
    source = table(tmp_path, "c", "a", "b")
    with source.open("a") as file:
        file.write("gone.png,a\nhttps://example.org/x.png,a\n,a\n")
    reasons = {u.file_name: u.reason for u in load(source, label="c").unreadable}
    assert "no such file" in reasons["gone.png"]
    assert "read from disk only" in reasons["https://example.org/x.png"]
    assert "names no file" in reasons["(no name)"]


ERRORS = {
    "missing": (lambda root: {"source": root / "nowhere"}, "there is no data set"),
    "blank": (lambda root: {"source": ""}, "there is no data set"),
    "misspelt": (lambda root: {"source": "emojii"}, "did you mean 'emoji'"),
    "column": (lambda root: {"source": root / "t.csv", "label": "knd"}, "did you mean 'kind'"),
    "group": (lambda root: {"source": root / "t.csv", "label": "kind", "group": "wo"}, "dataset.group.*'who'"),
    "image": (lambda root: {"source": root / "t.csv", "label": "kind", "image_column": "x"}, "no column 'x' of images"),
    "one label": (lambda root: {"source": root / "t.csv", "label": "same"}, "at least two labels"),
    "boxes": (lambda root: {"source": root / "t.csv", "label": "kind", "boxes": "b"}, "dataset.boxes"),
    "where": (lambda root: {"source": root / "t.csv", "label": "kind", "where": "who == 9"}, "keeps none of the 2"),
    "no label": (lambda root: {"source": root / "t.csv", "label": "blank"}, "none of the 2 images .* has a label"),
    "text": (lambda root: {"source": root / "broken", "label": "folder"}, "2 were tried.*a/1.png: not an image"),
    "empty": (lambda root: {"source": root / "empty"}, "holds no image"),
    "flat": (lambda root: {"source": root / "flat"}, "no sub-folders"),
    "kind": (lambda root: {"source": root / "notes.md"}, "no known kind"),
    "zip": (lambda root: {"source": root / "x.zip"}, "unpack"),
    "single": (lambda root: {"source": root / "0.png"}, "one image"),
    "latin": (lambda root: {"source": root / "latin.csv"}, "UTF-8"),
    "parquet": (lambda root: {"source": root / "bad.parquet"}, "not a Parquet file"),
    "jsonl": (lambda root: {"source": root / "bad.jsonl"}, "JSON lines"),
    "hub": (lambda root: {"source": "hf://a/b/c/d"}, "hf://owner/name"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_every_mistake_has_one_message_that_says_what_to_do(case: str, tmp_path: Path, load: Load) -> None:
    table(tmp_path, "kind,who,same,blank", "a,1,x,", "b,2,x,")
    for name in ("broken/a/1.png", "broken/b/2.png", "flat/x.png", "empty/readme.txt", "notes.md", "x.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(1) if name.startswith("flat") else b"text")
    (tmp_path / "latin.csv").write_bytes("file_name,label\n0.png,caf\xe9\n".encode("latin-1"))
    (tmp_path / "bad.parquet").write_bytes(b"text")
    (tmp_path / "bad.jsonl").write_text("[1, 2]\n")
    settings, message = ERRORS[case]
    with pytest.raises(DatasetError, match=message) as caught:
        load(**settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_few_groups_that_share_an_image_are_nothing_to_say(tmp_path: Path, load: Load) -> None:
    source = table(tmp_path, "c,who", *(f"{'ab'[n % 2]},p{n:02d}" for n in range(40)))
    (tmp_path / "4.png").write_bytes((tmp_path / "2.png").read_bytes())
    data = load(source, label="c", group="who")
    assert len({image.group for image in data}) == 39
    assert not any("groups" in warning for warning in data.warnings)
    assert not any("groups" in warning for warning in load("emoji", label="year", group="emoji").warnings)


def test_masks_are_found_beside_the_table_that_names_them(write: Write, load: Load) -> None:
    """Two splits with metadata of their own have files of the same names, and masks have the names of their images."""
    root = write("train/0.png", 0, "train/1.png", 1, "test/0.png", 2, "test/1.png", 3)
    for split, marked in (("train", 255), ("test", 0)):
        buffer = io.BytesIO()
        Image.new("L", (12, 8), marked).save(buffer, "PNG")
        for folder, name in (("m", "0.png"), ("masks", "1.png")):
            (root / split / folder).mkdir()
            (root / split / folder / name).write_bytes(buffer.getvalue())
        (root / split / "metadata.csv").write_text("file_name,c,mask\n0.png,x,m/0.png\n1.png,y,1.png\n")
    data = load(root, label="c", masks="mask")
    assert not data.warnings
    assert len(data) == 4
    for image in data:
        assert data.mask(image).all() == ("train" in image.source.path), image.source
        assert data.mask(image).any() == ("train" in image.source.path), image.source


def coco(path: Path, *names: str) -> Path:
    """Write a COCO file with one box in each of the named files, as wide as its number, from 1."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, start=1)]
    boxes = [{"image_id": image["id"], "bbox": [0, 0, image["id"], 1]} for image in images]
    path.write_text(json.dumps({"images": images, "annotations": boxes}))
    return path


@pytest.mark.parametrize(
    ("names", "widths", "warned"),
    [
        (["bad/0.png"], {"bad/0.png": 1}, False),
        (["good/0.png", "bad/0.png"], {"good/0.png": 1, "bad/0.png": 2}, False),
        (["set/bad/0.png", "set/good/0.png"], {"bad/0.png": 1, "good/0.png": 2}, False),
        (["1.png"], {"bad/1.png": 1}, False),  # the only one of that name
        (["0.png"], {}, True),  # bad/0.png or good/0.png?
        (["a/1.png"], {"bad/1.png": 1}, False),  # of another folder, and the only one of that name on either side
        (["a/1.png", "b/1.png"], {}, True),
        (["a/0.png"], {}, True),
        (["a/bad/0.png", "b/bad/0.png"], {}, True),  # which of the two is ours?
        (["b/bad/0.png", "bad/0.png"], {"bad/0.png": 2}, False),  # the same name goes before
        (["d/1.png", "1.png"], {"bad/1.png": 2}, False),  # no part of a folder's name
    ],
)
def test_boxes_of_coco_are_those_of_one_image(
    names: list[str], widths: dict[str, int], warned: bool, write: Write, load: Load
) -> None:
    """An image of another folder has not the boxes of its namesake."""
    root = write("set/bad/0.png", 0, "set/bad/1.png", 1, "set/good/0.png", 2)
    data = load(root / "set", boxes=str(coco(root / "truth.json", *names)))
    assert {image.file_name: image.boxes[0][2] for image in data if image.boxes} == widths
    assert [warning for warning in data.warnings if "truth.json" in warning] == list(data.warnings)
    assert bool(data.warnings) is warned


def test_boxes_of_coco_are_of_the_rows_that_are_kept(write: Write, load: Load) -> None:
    """A name without folders is clear where --where leaves out the other image of that name."""
    root = write("set/train/a/0.png", 0, "set/train/b/1.png", 1, "set/test/a/0.png", 2)
    boxes = str(coco(root / "truth.json", "0.png"))
    data = load(root / "set", label="folder_2", where="folder_1 == 'train'", boxes=boxes)
    assert {image.file_name: image.boxes for image in data if image.boxes} == {"train/a/0.png": ((0, 0, 1, 1),)}
    assert not data.warnings


def test_boxes_of_coco_go_to_an_image_with_a_row_a_label(tmp_path: Path, load: Load) -> None:
    """A Parquet file with the bytes of an image in two rows, under a label each."""
    cells = [{"bytes": encoded(number), "path": f"{number}.png"} for number in (0, 0, 1)]
    pq.write_table(pa.table({"image": cells, "c": ["a", "b", "a"]}), tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", label="c", boxes=str(coco(tmp_path / "truth.json", "0.png")))
    assert {image.labels: len(image.boxes) for image in data} == {("a", "b"): 1, ("a",): 0}


def test_boxes_of_coco_do_not_go_to_two_files_of_one_name(write: Write, load: Load) -> None:
    """In splits with metadata of their own both images are 0.png."""
    root = write("train/0.png", 0, "test/0.png", 1)
    for split, label in (("train", "x"), ("test", "y")):
        (root / split / "metadata.csv").write_text(f"file_name,c\n0.png,{label}\n")
    data = load(root, label="c", boxes=str(coco(root / "truth.json", "0.png")))
    assert [image.boxes for image in data] == [(), ()]
    assert "1 file names that have boxes could mean several images, first 0.png" in data.warnings[0]


def lesions(folder: Path, **columns: int) -> None:
    """Write masks of 12 x 8 pixels, each of which marks one column."""
    (folder / "masks").mkdir()
    for name, column in columns.items():
        mask = Image.new("L", (12, 8))
        mask.paste(255, (column, 0, column + 1, 8))
        mask.save(folder / "masks" / f"{name}.png")


@pytest.mark.parametrize(
    ("rows", "marked"),
    [
        ("0.png,x,\n", None),
        ("0.png,x,l.png\n", [1]),
        ("0.png,x,l.png\n0.png,x,r.png\n", [1, 9]),  # a row for each lesion
        ("0.png,x,\n0.png,x,r.png\n", [9]),
        ("0.png,x,r.png\n0.png,x,\n", [9]),
        ("0.png,x,l.png\n0.png,x,l.png\n", [1]),
        ("0.png,x,l.png\ncopy.png,x,r.png\n", [1, 9]),  # the same bytes
        ("copy.png,x,r.png\n0.png,x,\n", [9]),
    ],
)
def test_every_mask_of_an_image_counts(rows: str, marked: list[int] | None, write: Write, load: Load) -> None:
    root = write("0.png", 0, "copy.png", 0, "1.png", 1)
    lesions(root, l=1, r=9)
    (root / "t.csv").write_text(f"file_name,c,mask\n{rows}1.png,y,\n")
    data = load(root / "t.csv", label="c", masks="mask")
    found = data.mask(next(image for image in data if image.labels == ("x",)))
    assert (None if found is None else found[0].nonzero()[0].tolist()) == marked
    assert found is None or (found == found[0]).all()


def test_labels_that_are_left_out_are_known_of_an_image(tmp_path: Path, load: Load) -> None:
    """What is marked may be of either label. Of a row with one label it is of that one, whatever other rows say."""
    source = table(tmp_path, "c", "mass|effusion|air", "none|none", "mass")
    with source.open("a") as file:
        file.write("2.png,effusion\n")
    data = load(source, label="c", label_separator="|", labels=("mass", "none"))
    found = {image.file_name: (image.labels, image.other_labels) for image in data}
    assert found == {
        "0.png": (("mass",), ("air", "effusion")), "1.png": (("none",), ()), "2.png": (("mass",), ()),
    }  # fmt: skip
    assert not any(image.other_labels for image in load(source, label="c", label_separator="|"))


@pytest.mark.parametrize("boxes", ["x0,y0,x1,y1", "b"])
@pytest.mark.parametrize("labels", [None, ("mass", "none")])
def test_a_box_of_a_row_with_one_label_is_of_that_label(boxes: str, labels, write: Write, load: Load) -> None:
    """A table of boxes has a row for each; in a row with two labels nothing says of which its box is."""
    root = write("0.png", 0, "1.png", 1, "2.png", 2)
    rows = [("0", "mass", 0), ("0", "effusion", 4), ("1", "mass|effusion", 2), ("2", "none", None)]
    lines = [
        f'{name}.png,{cell},' + (",,,," if x is None else f'{x},0,{x + 1},1,"[[{x},0,{x + 1},1]]"')
        for name, cell, x in rows
    ]  # fmt: skip
    (root / "t.csv").write_text("file_name,c,x0,y0,x1,y1,b\n" + "\n".join(lines) + "\n")
    data = load(root / "t.csv", label="c", label_separator="|", boxes=boxes, labels=labels)
    found = {image.file_name: (image.boxes, image.box_labels) for image in data}
    both = (((0, 0, 1, 1), (4, 0, 5, 1)), ("mass", "effusion"))
    mass = (((0, 0, 1, 1),), ("mass",))
    assert found == {"0.png": mass if labels else both, "1.png": (((2, 0, 3, 1),), ()), "2.png": ((), ())}


def test_a_box_of_coco_is_not_of_the_label_of_a_row(tmp_path: Path, load: Load) -> None:
    """The file knows the image and no row of the table."""
    data = load(table(tmp_path, "c", "a", "b"), label="c", boxes=str(coco(tmp_path / "truth.json", "0.png")))
    assert {image.box_labels for image in data} == {()}
    assert sum(len(image.boxes) for image in data) == 1


def test_boxes_of_coco_without_an_area_are_left_out(tmp_path: Path, load: Load) -> None:
    """A click instead of a drag: one such box does not refuse a data set, and is told."""
    path = coco(tmp_path / "truth.json", "0.png", "1.png")
    content = json.loads(path.read_text())
    content["annotations"] += [{"image_id": 1, "bbox": [5, 5, 0, 7]}, {"image_id": 2, "bbox": [5, 5, 3, 0]}]
    path.write_text(json.dumps(content))
    data = load(table(tmp_path, "c", "a", "b"), label="c", boxes=str(path))
    assert sorted(image.boxes for image in data) == [((0, 0, 1, 1),), ((0, 0, 2, 1),)]
    assert data.warnings == (f"{path}: boxes without an area are left out: 2",)


@pytest.mark.parametrize(
    ("categories", "labels", "told"),
    [
        (("mass", "Infiltrate"), None, "'Infiltrate' (did you mean 'infiltration'?)"),
        (("mass", "pacemaker"), None, "'pacemaker'"),
        (("mass", "infiltration"), None, None),
        (("mass", "infiltration"), ("mass", "none"), None),  # left out on purpose
        (("finding", "defect"), None, None),  # other words for what is marked: they tell no label
    ],
)
def test_categories_that_are_no_label_are_told(categories, labels, told, tmp_path: Path, load: Load) -> None:
    """As soon as one category is a label, boxes of the others count for none."""
    source = table(tmp_path, "c", "mass", "infiltration", "none")
    path = coco(tmp_path / "truth.json", "0.png", "1.png")
    content = json.loads(path.read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(categories)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = number
    # a box of the second category in an image that is kept
    content["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [2, 2, 2, 2]})
    path.write_text(json.dumps(content))
    warnings = load(source, label="c", boxes=str(path), labels=labels).warnings
    expected = f"boxes of these names count for no label, since none is called so: {told}"
    assert warnings == ((expected,) if told else ())


@pytest.mark.parametrize(
    ("box", "out"),
    [("100,120,200,220", 1), ("6,0,18,8", 0), ("6,0,19,8", 1), ("-3,-2,6,7", 0), ("0,0,12,8", 0)],
)
def test_boxes_outside_of_their_image_are_told(box: str, out: int, tmp_path: Path, load: Load) -> None:
    """Of the original, perhaps, and the images are smaller. Half of a box may lie beyond the border: 6 to 18 of 12."""
    data = load(table(tmp_path, "c,x0,y0,x1,y1", f"a,{box}", "b,1,1,4,4"), label="c", boxes="x0,y0,x1,y1")
    expected = (
        "boxes that lie wholly or for the most part outside of their image: 1 of 2, first of 0.png; are they those of "
        "images of another size?"
    )
    assert data.warnings == (expected,) * out
