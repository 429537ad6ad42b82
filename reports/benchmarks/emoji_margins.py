"""How well do the margins around the embedded emoji alone tell their years apart? And emoji with equal margins.

python reports/benchmarks/emoji_margins.py          # accuracy of margins alone, on held-out emoji
python reports/benchmarks/emoji_margins.py OUT      # and the data set OUT/table.csv, whose margins say nothing:
    # every drawing 52 pixels on its longer side, in the middle of 64, so that all years are resampled alike
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from typicality.config import config_of, resolve
from typicality.dataset import LabelledImages, load_dataset
from typicality.records import LabelledImage

SIDE, DRAWN = 64, 52
SIDES = ("top", "bottom", "left", "right")


def extent(image: Image.Image) -> tuple[int, int, int, int]:
    """Bounds of what is not white: left, top, right, bottom, the last two exclusive."""
    ink = (np.asarray(image) < 250).any(axis=2)
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def margins(dataset: LabelledImages, images: list[LabelledImage]) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 4) margins in the order of SIDES and (n,) labels."""
    found = []
    for image in images:
        left, top, right, bottom = extent(dataset.open(image).convert("RGB"))
        found.append((top, SIDE - bottom, left, SIDE - right))
    return np.array(found), np.array([image.labels[0] for image in images])


def measure(dataset: LabelledImages) -> None:
    (train, labels), (held_out, true) = (margins(dataset, part) for part in dataset.held_out())
    for label in dataset.labels:
        print(label, dict(zip(SIDES, np.median(train[labels == label], axis=0).astype(int).tolist(), strict=True)))
    for name, columns in (("all four margins", [0, 1, 2, 3]), ("the lower one", [1])):
        forest = RandomForestClassifier(300, min_samples_leaf=5, random_state=0).fit(train[:, columns], labels)
        print(f"{name}: {np.mean(forest.predict(held_out[:, columns]) == true):.3f} of {len(true)} held-out images")


def write_equal(dataset: LabelledImages, out: Path) -> None:
    rows = [("image", "year", "emoji")]
    for number, image in enumerate(dataset):
        picture = dataset.open(image).convert("RGB")
        part = picture.crop(extent(picture))
        scale = DRAWN / max(part.size)
        part = part.resize([max(1, round(length * scale)) for length in part.size], Image.Resampling.LANCZOS)
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        canvas.paste(part, ((SIDE - part.width) // 2, (SIDE - part.height) // 2))
        for label in image.labels:
            path = out / label / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            canvas.save(path)
            rows.append((f"{label}/{path.name}", label, image.group))
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    emoji = load_dataset(resolve(config_of("emoji"), {"dataset": {"source": "emoji", "label": "year"}}).dataset)
    measure(emoji)
    for folder in sys.argv[1:]:
        write_equal(emoji, Path(folder))
