"""Write a folder data set anew with a column `series`: images that must stay on one side of a split.

    python reports/benchmarks/join_series.py ../shared/data/magnetic_tile --out reports/magnetic_tile

Two images are of one series where the counters at the end of their file names (`..._num_108719.jpg`) lie within
`--gap` of one another, or where their thumbnails correlate by more than `--similarity`; and so on along chains. In
magnetic_tile the camera counted on while one tile was photographed under its six exposures: the counters of a series
are 5 to 100 apart, and those of different tiles mostly several hundred. Nothing is copied: images and masks are links.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def thumbnail(path: Path) -> np.ndarray:
    """Return a grey thumbnail as a unit vector, without its mean."""
    grey = Image.open(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(grey, dtype=np.float64).ravel()
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def counter(name: str) -> int:
    """Return the number at the end of a file name."""
    found = re.search(r"(\d+)\.\w+$", name)
    if found is None:
        raise SystemExit(f"{name} does not end in a number")
    return int(found[1])


def series_of(counters: np.ndarray, thumbnails: np.ndarray, gap: int, similarity: float) -> np.ndarray:
    """Return for each image the smallest counter of its series."""
    order = np.argsort(counters)
    parent = np.arange(len(counters))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    pairs = [(a, b) for a, b in pairwise(order) if counters[b] - counters[a] <= gap]
    alike = np.argwhere(np.triu(thumbnails @ thumbnails.T > similarity, 1))
    for a, b in [*pairs, *alike.tolist()]:
        first, second = sorted((root(int(a)), root(int(b))), key=lambda i: counters[i])
        parent[second] = first
    return np.array([counters[root(i)] for i in range(len(counters))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gap", type=int, default=300)
    parser.add_argument("--similarity", type=float, default=0.99)
    chosen = parser.parse_args()
    source = chosen.source.resolve()
    with (source / "metadata.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    counters = np.array([counter(row["file_name"]) for row in rows])
    thumbnails = np.stack([thumbnail(source / row["file_name"]) for row in rows])
    series = series_of(counters, thumbnails, chosen.gap, chosen.similarity)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for folder in (path for path in source.iterdir() if path.is_dir()):
        link = chosen.out / folder.name
        if not link.exists():
            link.symlink_to(folder, target_is_directory=True)
    with (chosen.out / "metadata.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [*rows[0], "series"])
        writer.writeheader()
        writer.writerows({**row, "series": f"s{name}"} for row, name in zip(rows, series, strict=True))
    sizes = Counter(series.tolist())
    print(f"{len(rows)} images in {len(sizes)} series, the largest of {max(sizes.values())}: {chosen.out}")


if __name__ == "__main__":
    main()
