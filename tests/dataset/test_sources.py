"""Every source becomes the same records: the same four images, packed in each way, give the same result."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import sys
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from typicality.dataset import LabelledImages, builtin_datasets
from typicality.errors import DatasetError
from typicality.store import SCHEMA_VERSION

from .conftest import Load, Write, encoded

YEARS = ["1921", "1923", "1931", "1938"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def four_images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(number))
    return folder


def rows(prefix: str = "") -> str:
    return "".join(f"{prefix}{number}.png,{year},x\n" for number, year in enumerate(YEARS))


def as_tree(root: Path) -> Path:
    for number, year in enumerate(YEARS):
        (root / year).mkdir(parents=True)
        (root / year / f"{number}.png").write_bytes(encoded(number))
    return root


def as_metadata_csv(root: Path) -> Path:
    four_images(root)
    (root / "metadata.csv").write_text("file_name,year,other\n" + rows())
    return root


def as_metadata_beside_images(root: Path) -> Path:
    """File names relative to images/, the table beside that folder."""
    four_images(root / "images")
    (root / "metadata.csv").write_text("file_name,year,other\n" + rows())
    return root


def as_metadata_inside_images(root: Path) -> Path:
    four_images(root / "images")
    (root / "images" / "metadata.csv").write_text("file_name,year,other\n" + rows())
    return root


def as_metadata_jsonl(root: Path) -> Path:
    four_images(root)
    lines = (json.dumps({"file_name": f"{n}.png", "year": int(y)}) for n, y in enumerate(YEARS))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def as_splits(root: Path) -> Path:
    """A folder a split, each with its metadata, as Hugging Face lays image folders out."""
    for part, numbers in (("train", (0, 1)), ("test", (2, 3))):
        (root / part).mkdir(parents=True)
        for number in numbers:
            (root / part / f"{number}.png").write_bytes(encoded(number))
        lines = "".join(f"{n}.png,{YEARS[n]}\n" for n in numbers)
        (root / part / "metadata.csv").write_text("file_name,year\n" + lines)
    return root


def as_semicolon_csv(root: Path) -> Path:
    four_images(root / "pictures")
    table = root / "cars.csv"
    lines = "".join(f"pictures/{n}.png;{y}\n" for n, y in enumerate(YEARS))
    table.write_text("\ufeffPath;year\n" + lines, encoding="utf-8")
    return table


def as_tsv(root: Path) -> Path:
    four_images(root)
    table = root / "cars.tsv"
    table.write_text("filename\tyear\n" + "".join(f"{n}.png\t{y}\n" for n, y in enumerate(YEARS)))
    return table


def as_parquet_of_paths(root: Path) -> Path:
    """Years as floats, as a table with missing values stores whole numbers."""
    four_images(root)
    table = pa.table({"image_path": [f"{n}.png" for n in range(4)], "year": [float(y) for y in YEARS]})
    pq.write_table(table, root / "cars.parquet")
    return root / "cars.parquet"


def as_parquet_of_images(root: Path) -> Path:
    """Two row groups, and one image given by its path instead of its bytes."""
    four_images(root)
    cells = [{"bytes": encoded(n), "path": f"{n}.png"} for n in range(3)] + [{"bytes": None, "path": "3.png"}]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE), "year": YEARS}), root / "cars.parquet", row_group_size=2)
    return root / "cars.parquet"


def as_parquet_shards(root: Path) -> Path:
    """A clone of a hub repository: data/train-*.parquet, with names behind class numbers."""
    (root / "data").mkdir(parents=True)
    names = {"year": {"_type": "ClassLabel", "names": YEARS}}
    metadata = {"huggingface": json.dumps({"info": {"features": names}})}
    for shard in range(2):
        numbers = [2 * shard, 2 * shard + 1]
        cells = pa.array([{"bytes": encoded(n), "path": None} for n in numbers], IMAGE)
        table = pa.table({"image": cells, "year": numbers}).replace_schema_metadata(metadata)
        pq.write_table(table, root / "data" / f"train-{shard:05d}-of-00002.parquet")
    return root


def as_tar(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "cars.tar", "w") as archive:
        for number, year in enumerate(YEARS):
            for extension, data in (("png", encoded(number)), ("json", json.dumps({"year": year}).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return root / "cars.tar"


def as_folder_of_tars(root: Path) -> Path:
    return as_tar(root).parent


def as_saved_data_set(root: Path) -> Path:
    from datasets import Dataset, Features, Image, Value

    data = {"image": [{"bytes": encoded(n), "path": None} for n in range(4)], "year": [int(y) for y in YEARS]}
    Dataset.from_dict(data, Features({"image": Image(), "year": Value("int64")})).save_to_disk(root)
    return root


WAYS = [
    as_tree,
    as_metadata_csv,
    as_metadata_beside_images,
    as_metadata_inside_images,
    as_metadata_jsonl,
    as_splits,
    as_semicolon_csv,
    as_tsv,
    as_parquet_of_paths,
    as_parquet_of_images,
    as_parquet_shards,
    as_tar,
    as_folder_of_tars,
    as_saved_data_set,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_source_gives_the_same_images_labels_and_fingerprint(way, tmp_path: Path, load: Load) -> None:
    reference = load(as_tree(tmp_path / "reference"))
    data = load(way(tmp_path / "cars"), label=None if way is as_tree else "year")
    assert data.name == "cars"
    assert data.labels == tuple(YEARS)
    assert data.ordered
    assert [i.image_id for i in data] == [i.image_id for i in reference]
    assert [i.labels for i in data] == [i.labels for i in reference]
    assert data.fingerprint == reference.fingerprint
    assert not data.unreadable
    assert not data.warnings


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_records_travel_to_another_process_and_open_there(way, tmp_path: Path, load: Load) -> None:
    """Each image's red channel is its number, and its year says which number that is."""
    data = load(way(tmp_path / "cars"), label=None if way is as_tree else "year")
    for image in pickle.loads(pickle.dumps(data.images)):
        opened = data.open(image)
        assert opened.mode == "RGB"
        assert opened.size == (image.width, image.height) == (12, 8)
        assert opened.getpixel((0, 0)) == (YEARS.index(image.labels[0]), 0, 77)


def test_tars_match_a_pattern_and_take_class_files(tmp_path: Path, load: Load) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"part-{shard}.tar", "w") as archive:
            for name, data in ((f"s{shard}.jpg", encoded(shard, form="JPEG")), (f"s{shard}.cls", b"%d\n" % shard)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert load(tmp_path / "part-*.tar", label="cls").labels == ("0", "1")


def test_compressed_tar_is_refused_with_the_remedy(tmp_path: Path, load: Load) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(DatasetError, match="unpack"):
        load(tmp_path / "a.tar")


def test_the_metadata_folder_counts_images_that_it_does_not_name(tmp_path: Path, load: Load) -> None:
    root = as_metadata_csv(tmp_path / "cars")
    (root / "extra.png").write_bytes(encoded(99))
    assert any(w.startswith("1 image file") for w in load(root, label="year").warnings)


def test_a_deep_tree_offers_every_level(write: Write, load: Load) -> None:
    root = write("1920/ford/a.png", 1, "1930/ford/a.png", 2, "1930/fiat/b.png", 3)
    assert load(root).labels == ("fiat", "ford")
    assert load(root, label="folder_1").labels == ("1920", "1930")
    assert load(root, label="folder_1", where="folder == 'ford'").fingerprint != load(root).fingerprint


def test_equal_file_names_in_two_folders_stay_apart(write: Write, load: Load) -> None:
    data = load(write("cats/1.png", 1, "dogs/1.png", 2))
    assert len(data) == len({i.image_id for i in data}) == 2
    assert {i.file_name for i in data} == {"cats/1.png", "dogs/1.png"}


def test_hidden_files_are_no_images_and_linked_folders_are_followed_once(write: Write, load: Load) -> None:
    root = write("cats/1.png", 1, "dogs/2.png", 2, "dogs/._2.png", 3, "elsewhere/hidden/4.png", 4)
    (root / "cats" / "loop").symlink_to(root / "cats")
    (root / "birds").symlink_to(root / "elsewhere" / "hidden")
    data = load(root)
    assert len(data) == 3
    assert data.labels[0] == "birds"


@pytest.mark.parametrize("version", [SCHEMA_VERSION, 0])
def test_a_run_inside_the_data_set_is_no_data(version: int, write: Write, load: Load) -> None:
    """`cd photos; typicality mine .` writes photos/reports/photos-folder, whose pictures are made from photos."""
    root = write("a/1.png", 1, "b/2.png", 2, "reports/photos-folder/grids/3.png", 3, "out/4.png", 4, "b/fast/5.png", 5)
    for run in ("reports/photos-folder", "out"):
        (root / run / "run.json").write_text(json.dumps({"schema_version": version, "stages": {}}))
    (root / "out" / "metadata.csv").write_text("file_name,label\n4.png,x\n")
    (root / "b" / "fast" / "run.json").write_text('{"speed": 12}')  # a run of something else
    data = load(root)
    assert (data.labels, len(data)) == (("a", "b", "fast"), 3)


def test_offline_a_data_set_of_the_hub_is_looked_for_in_the_cache_alone(load: Load, monkeypatch) -> None:
    """Whatever the environment says; and afterwards the hub may be asked as before."""
    import datasets
    from huggingface_hub import constants

    asked = []

    def address(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", address)
    for module in (datasets.config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    with pytest.raises(DatasetError, match="is not in the local cache, and the run is offline"):
        load("hf://nobody/nothing-at-all", offline=True)
    assert asked == []
    assert (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE) == (False, False)


def test_files_of_a_hub_data_set_that_do_not_fit_together_are_an_error_of_the_data(load: Load, monkeypatch) -> None:
    import datasets

    def prepare(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from TypeError("other columns")

    monkeypatch.setattr(datasets, "load_dataset", prepare)
    with pytest.raises(DatasetError, match="cannot be prepared: other columns"):
        load("hf://owner/name")


COMPOSED, DECOMPOSED = "caf\u00e9.png", "cafe\u0301.png"


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [
        *[(on_disk, in_table) for on_disk in (DECOMPOSED, COMPOSED) for in_table in (DECOMPOSED, COMPOSED)],
        (" a.png", " a.png"),
        ("a.png", " a.png "),
    ],
)
def test_files_are_found_however_their_names_are_spelt(on_disk: str, in_table: str, tmp_path: Path, load: Load) -> None:
    """In a table of paths, in a metadata folder, and as a mask; labels and names shown are composed all the same."""
    four_images(tmp_path / "set")
    for folder in ("set", "set/masks"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / on_disk).write_bytes(encoded(9))
    lines = f'file_name,year,m\n"{in_table}",1,"{in_table}"\n0.png,2,\n1.png,2,\n'
    for name in ("metadata.csv", "table.csv"):
        (tmp_path / "set" / name).write_text(lines, encoding="utf-8")
    for source in (tmp_path / "set", tmp_path / "set" / "table.csv"):
        data = load(source, label="year", masks="m")
        assert data.unreadable == ()
        (image,) = (image for image in data if image.labels == ("1",))
        assert image.file_name == unicodedata.normalize("NFC", in_table).strip()
        assert data.open(image).size == (12, 8)
        assert data.mask(image) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_escaped_and_the_files_still_open(tmp_path: Path, load: Load) -> None:
    """An old disk's "cafe" with an accent in Latin-1: what is shown and stored can be written, and what is opened is
    the name itself."""
    folder = os.path.join(os.fsencode(tmp_path), b"set", b"caf\xe9")
    os.makedirs(folder)
    (tmp_path / "set" / "bar").mkdir()
    for number, path in enumerate((os.path.join(folder, b"\xe9.png"), os.fsencode(tmp_path / "set" / "bar" / "x.png"))):
        Path(os.fsdecode(path)).write_bytes(encoded(number))
    Path(os.fsdecode(os.path.join(folder, b"\xe8.png"))).write_bytes(b"text")
    data = load(tmp_path / "set")
    assert data.labels == ("bar", "caf\\udce9")
    assert data.unreadable[0].file_name == "caf\\udce9/\\udce8.png"
    (image,) = (image for image in data if image.labels == ("caf\\udce9",))
    assert (image.file_name, image.metadata) == ("caf\\udce9/\\udce9.png", {"folder": "caf\\udce9"})
    assert data.open(image).size == (12, 8)
    pa.array([image.file_name, *image.labels, *data.warnings])  # whatever becomes a table must be text
    with pytest.raises(DatasetError, match="is not in UTF-8: rename it, make a link"):
        load(os.fsdecode(folder))


def test_surrogates_in_json_are_escaped(tmp_path: Path, load: Load) -> None:
    """JSON can write half a character, and no table or page can."""
    four_images(tmp_path)
    rows = [{"file_name": f"{n}.png", "label": f"{n % 2}\ud83d", "tags": ["\ud83d", n]} for n in range(4)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load(tmp_path / "t.jsonl", label="label")
    assert data.labels == ("0\\ud83d", "1\\ud83d")
    assert data[0].metadata["tags"][0] == "\\ud83d"


@pytest.mark.parametrize("kind", ["binary", "struct"])
def test_a_metadata_table_with_a_binary_column_still_names_files(kind: str, tmp_path: Path, load: Load) -> None:
    """The column holds a hash, a thumbnail or whatever: images beside a table are those that it names."""
    four_images(tmp_path)
    bits = [b"hash"] * 4 if kind == "binary" else pa.array([{"bytes": b"hash", "path": None}] * 4, IMAGE)
    table = pa.table({"hash": bits, "file_name": [f"{n}.png" for n in range(4)], "label": ["a", "a", "b", "b"]})
    pq.write_table(table, tmp_path / "metadata.parquet")
    data = load(tmp_path)
    assert (len(data), data.unreadable, data.labels) == (4, (), ("a", "b"))
    assert "hash" not in data.columns


def test_a_metadata_table_may_hold_its_images(tmp_path: Path, load: Load) -> None:
    """Where it names no file."""
    table = pa.table({"image": [encoded(n) for n in range(4)], "label": ["a", "a", "b", "b"]})
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert load(tmp_path).counts == {"a": 2, "b": 2}


def test_a_saved_data_set_with_splits_takes_the_one_named(tmp_path: Path, load: Load) -> None:
    from datasets import DatasetDict, load_from_disk

    part = load_from_disk(str(as_saved_data_set(tmp_path / "part")))
    DatasetDict(train=part, test=part.select([0, 2])).save_to_disk(tmp_path / "both")
    assert len(load(tmp_path / "both", label="year")) == 4
    assert len(load(tmp_path / "both", label="year", split="test")) == 2
    with pytest.raises(DatasetError, match="did you mean 'test'"):
        load(tmp_path / "both", label="year", split="tset")
    assert len(load(tmp_path / "part", label="year")) == 4
    with pytest.raises(DatasetError, match="holds no splits, so there is no 'test'"):
        load(tmp_path / "part", label="year", split="test")


def test_embedded_flags(load: Load) -> None:
    data: LabelledImages = load("flags")
    assert data.label == "continent"
    assert "Africa" in data.labels
    assert {data.open(image).size for image in data[:5]} == {(128, 96)}
    assert sum(len(d.file_names) - 1 for d in data.duplicates) + len(data) == 246


def test_embedded_emoji_are_the_same_subjects_in_each_year(load: Load) -> None:
    data = load("emoji", label="year", group="emoji", where="category == 'Symbols'")
    assert data.labels == ("2016", "2019", "2022", "2024")
    assert len({data.number_of(year) for year in data.labels}) == 1
    assert data[0].group == data[0].metadata["emoji"]


def test_emoji_without_a_label_names_its_labels(load: Load) -> None:
    with pytest.raises(DatasetError, match="'year', 'category'"):
        load("emoji")


def test_a_folder_of_a_built_in_name_wins_and_says_so(write: Write, load: Load, monkeypatch) -> None:
    monkeypatch.chdir(write("emoji/cats/1.png", 1, "emoji/dogs/2.png", 2))
    data = load("emoji")
    assert data.labels == ("cats", "dogs")
    assert "instead of the built-in" in data.warnings[0]


def test_catalogue_says_how_to_get_what_is_not_here(load: Load, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    infos = {info.name: info for info in builtin_datasets()}
    assert list(infos) == ["emoji", "flags", "elpv", "cardb", "ftt", "g3", "places", "chestxray"]
    assert infos["emoji"].installed
    assert infos["flags"].installed
    for name in ("cardb", "ftt", "g3", "places", "chestxray"):
        assert not infos[name].installed
        with pytest.raises(DatasetError, match="cannot be downloaded for you"):
            load(name)


def test_elpv_is_read_without_its_own_reader(tmp_path: Path) -> None:
    from typicality.dataset.builtin.catalogue import elpv_source

    four_images(tmp_path / "images")
    (tmp_path / "labels.csv").write_text("images/0.png  1.0                 mono\nimages/1.png  0.3333333333  poly\n")
    found = list(elpv_source(tmp_path).rows())
    assert [row.values["defect"] for row in found] == ["defective", "functional"]
    assert [row.values["probability"] for row in found] == ["1.00", "0.33"]
    assert [row.place.read() for row in found] == [encoded(0), encoded(1)]


def test_listing_reads_ahead_by_a_bounded_number_of_images(monkeypatch) -> None:
    """Memory must not grow with the data set: rows are taken from the source only as images are finished."""
    from typicality.dataset import load
    from typicality.dataset.places import NoPlace
    from typicality.dataset.rows import Row

    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield load._Labelled(Row(f"{taken}.png", NoPlace("none"), {}), ("a",), "", (), None)

    results = load._in_threads(endless())
    for _ in range(100):
        next(results)
    results.close()
    assert taken < 120


def shards_of(folder: Path) -> Path:
    """Four training images and two test images, as the hub names them."""
    (folder / "data").mkdir(parents=True)
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        cells = [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers]
        table = pa.table({"image": pa.array(cells, IMAGE), "year": ["1921", "1923"] * (len(cells) // 2)})
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_split_of_shards_is_taken_alone_and_one_that_is_not_there_refused(tmp_path: Path, load: Load) -> None:
    folder = shards_of(tmp_path / "set")
    assert [len(load(folder, label="year", split=split)) for split in ("train", "test")] == [4, 2]
    with pytest.raises(DatasetError, match=r"'tset' is no split of .*'test'"):
        load(folder, label="year", split="tset")


def test_numbers_of_single_precision_are_labels_as_they_were_written(tmp_path: Path, load: Load) -> None:
    """0.7 in float32 is 0.699999988 in double precision, which would be another label and another bin."""
    for kind in (pa.float32(), pa.float16()):
        values = pa.array([0.1, 0.2, 0.7, None], pa.float32()).cast(kind)
        images = pa.array([{"bytes": encoded(number), "path": f"{number}.png"} for number in range(4)], IMAGE)
        pq.write_table(pa.table({"image": images, "x": values}), tmp_path / "t.parquet")
        assert load(tmp_path / "t.parquet", label="x").labels == ("0.1", "0.2", "0.7")
        assert load(tmp_path / "t.parquet", label="x", bin=0.1).labels == ("0.1", "0.2", "0.7")


def test_files_of_other_formats_are_counted_and_rare_suffixes_read(write: Write, load: Load) -> None:
    root = write("a/1.png", 1, "a/2.apng", 2, "b/3.jpe", 3, "b/4.PNG", 4, "b/5.svg", 5, "b/c.dcm", 6)
    dataset = load(root, label="folder")
    assert len(dataset) == 4
    assert any("2 files of formats that are not read, first b/5.svg" in text for text in dataset.warnings)


@pytest.mark.parametrize(
    "header", ["file_name;year;a", 'file_name;year;"a, b"', "sep=;\nfile_name;year;c", "file_name\tyear\tc"]
)
def test_what_separates_the_cells_is_read_off_the_header(tmp_path: Path, load: Load, header: str) -> None:
    sign = "\t" if "\t" in header else ";"
    four_images(tmp_path)
    lines = "".join(f"{number}.png{sign}{year}{sign}x\n" for number, year in enumerate(YEARS))
    (tmp_path / "metadata.csv").write_text(f"{header}\n{lines}")
    assert load(tmp_path, label="year").labels == tuple(YEARS)


def shown(data: LabelledImages) -> dict[str, int]:
    """Return label -> number of its image, as the red channel tells it."""
    return {image.labels[0]: data.open(image).getpixel((0, 0))[0] for image in data}


def test_a_table_of_images_that_was_written_anew_is_read_anew(tmp_path: Path, load: Load) -> None:
    """In one session, as in a notebook: the images of before would come under the labels of now."""
    path = tmp_path / "t.parquet"
    for numbers in ([0, 1, 2, 3], [3, 2, 1, 0]):
        cells = pa.array([{"bytes": encoded(number), "path": None} for number in numbers], IMAGE)
        pq.write_table(pa.table({"image": cells, "label": [f"is {number}" for number in numbers]}), path)
        assert shown(load(path)) == {f"is {number}": number for number in range(4)}


@pytest.mark.parametrize("splits", [False, True])
def test_a_saved_data_set_that_was_written_anew_is_read_anew(splits: bool, tmp_path: Path, load: Load) -> None:
    """The whole of it, and one of its splits alone."""
    from datasets import Dataset, DatasetDict, Features, Image, Value

    for time, numbers in enumerate(([0, 1, 2], [2, 1, 0], [5, 6])):
        cells = [{"bytes": encoded(number), "path": None} for number in numbers]
        content = {"image": cells, "label": [f"is {number}" for number in numbers]}
        part = Dataset.from_dict(content, Features({"image": Image(), "label": Value("string")}))
        if splits and time == 0:
            DatasetDict(train=part, test=part).save_to_disk(tmp_path / "saved")
        else:
            part.save_to_disk(tmp_path / "saved" / "train" if splits else tmp_path / "saved")
        assert shown(load(tmp_path / "saved")) == {f"is {number}": number for number in numbers}


def written_tar(path: Path) -> list[int]:
    """Write four samples of an image and a class; return where each member's header begins."""
    with tarfile.open(path, "w") as archive:
        for number in range(4):
            for extension, data in (("png", encoded(number)), ("cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as archive:
        return [member.offset for member in archive]


def test_a_tar_is_read_to_its_end_or_refused(tmp_path: Path, load: Load) -> None:
    """To tarfile a damaged header in the middle is the end, and so is that of the first of two joined archives."""
    path = tmp_path / "t.tar"
    at = written_tar(path)[4]
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for good in (whole, whole[: end + 512]):  # one block of zeros is enough of an end
        path.write_bytes(good)
        assert len(load(path)) == 4
    damaged = whole[: at + 5] + b"\xff" * 95 + whole[at + 100 :]
    for bad in (damaged, whole[:at], whole[: at + 200], whole[:end], whole + whole):
        path.write_bytes(bad)
        with pytest.raises(DatasetError, match=r"t\.tar can be read up to byte \d+ only"):
            load(path)


def test_the_labels_of_a_tar_come_from_members_beside_the_images(tmp_path: Path, load: Load) -> None:
    """Folders in it are no labels, as they are on disk."""
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("a/0.png", "b/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(encoded(1))
            archive.addfile(member, io.BytesIO(encoded(1)))
    for label in (None, "folder"):
        with pytest.raises(DatasetError, match=r"0001\.json or 0001\.cls beside 0001\.png"):
            load(tmp_path / "t.tar", label=label)


def test_images_in_folders_that_the_metadata_does_not_name_are_counted(write: Write, load: Load) -> None:
    """A whole split that was forgotten, for instance; masks and smaller copies that it names are no images left out."""
    root = write(
        "train/0.png", 0, "train/1.png", 1, "masks/m.png", 2, "small/s.png", 3, "test/4.png", 4, "test/5.png", 5
    )
    lines = "file_name,label,mask,copy\ntrain/0.png,a,m.png,small/s.png\ntrain/1.png,b,,\n"
    (root / "metadata.csv").write_text(lines)
    assert load(root).warnings == (
        f"2 image files in {root} are not named in the metadata, first test/4.png: left out",
    )
    for table in ("metadata.csv", "test/4.png", "test/5.png", "masks/m.png", "small/s.png"):
        (root / table).unlink()
    write("test/0.png", 6)
    (root / "train" / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")
    assert "first test/0.png" in load(root).warnings[0]


def test_a_column_of_images_is_none_of_masks(tmp_path: Path, load: Load) -> None:
    from datasets import Dataset, Features, Image, Value

    cells = [{"bytes": encoded(number), "path": None} for number in range(2)]
    columns = Features({"image": Image(), "mask": Image(), "label": Value("string")})
    data = Dataset.from_dict({"image": cells, "mask": cells, "label": ["a", "b"]}, columns)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "t.parquet")
    for source in ("saved", "t.parquet"):
        with pytest.raises(DatasetError, match="'mask' holds images, and masks are read from files"):
            load(tmp_path / source, masks="mask")


@pytest.fixture
def locked() -> Iterator[Path]:
    """A data set `cars` beside a folder `locked`, which may not be entered."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        four_images(root / "locked" / "photos")
        as_tree(root / "cars")
        root.chmod(0o755)
        (root / "locked").chmod(0)
        yield root
        (root / "locked").chmod(0o755)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may enter every folder, and is nobody meanwhile."""
    is_root = os.getuid() == 0
    if is_root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems change users otherwise")
@pytest.mark.parametrize("place", ["cars/1931/more", "cars/more"])
@pytest.mark.parametrize("target", ["locked", "locked/photos"])
def test_folders_that_may_not_be_entered_are_an_error_of_the_data(
    place: str, target: str, locked: Path, load: Load
) -> None:
    """Not a bug, and not passed over, as a run would be."""
    (locked / place).symlink_to(locked / target)
    with as_nobody():
        with pytest.raises(DatasetError, match=r"cannot read the folder .*: Permission denied"):
            load(locked / "cars")
        with pytest.raises(DatasetError, match=r"cannot read .*photos: Permission denied"):
            load(locked / "locked" / "photos")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems change users otherwise")
def test_an_image_that_may_not_be_read_is_left_out(locked: Path, load: Load) -> None:
    (locked / "cars" / "1931" / "more.png").symlink_to(locked / "locked" / "photos" / "0.png")
    with as_nobody():
        data = load(locked / "cars")
    assert len(data) == 4
    assert [(image.file_name, image.reason) for image in data.unreadable] == [("1931/more.png", "Permission denied")]
