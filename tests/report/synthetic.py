"""A made-up run over the embedded emoji: real pictures, invented scores. For tests of the report and to look at it.

python -m tests.report.synthetic FOLDER [METHOD]   writes the report of 4 years x 12 clusters x 12 members
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

import typicality
from typicality.config import ReportSettings
from typicality.report.view import ReportInput

EMOJI = Path(typicality.__file__).parent / "dataset" / "builtin" / "emoji.parquet"
SIDE, MAP = 64, 16  # pixels of an emoji, cells of a map


@dataclass(frozen=True)
class Picture:
    image_id: str
    file_name: str
    group: str
    content: bytes


@lru_cache(maxsize=1)
def _emoji() -> dict[str, list[Picture]]:
    table = pq.read_table(EMOJI, columns=["image", "file_name", "year", "emoji"])
    by_year: dict[str, list[Picture]] = {}
    for position, row in enumerate(table.to_pylist()):
        picture = Picture(f"{position:032x}", row["file_name"], row["emoji"], row["image"]["bytes"])
        by_year.setdefault(row["year"], []).append(picture)
    return by_year


def open_picture(picture: Picture) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(picture.content)) as image:
        rgba = image.convert("RGBA")
    white = PIL.Image.new("RGBA", rgba.size, "white")
    return PIL.Image.alpha_composite(white, rgba).convert("RGB")


def synthetic_input(
    labels: Sequence[str] = ("2016", "2019", "2022", "2024"),
    clusters: int = 12,
    members: int = 12,
    ordered: bool = True,
    seed: int = 0,
    file_names: Mapping[int, str] | None = None,
    pool_size: int | None = None,
    method: str = "controls",
    **changes: Any,
) -> ReportInput:
    """Return a report's input: `labels` drawn from the years in turn, boxes and scores from a seeded generator.

    Members of a cluster sit at the same place of look-alike (neighbouring) emoji, so that rows are coherent.
    `file_names` overrides names by position of the image, `pool_size` limits the distinct images of a year, `method`
    is that of the p-values ("sign flip" as in a run without folds), and `changes` override any other field.
    """
    generator = np.random.default_rng(seed)
    years = list(_emoji().values())
    pictures: dict[str, Picture] = {}
    elements: list[dict[str, Any]] = []
    grouped: list[dict[str, Any]] = []
    images: dict[tuple[str, str], dict[str, Any]] = {}
    for number, label in enumerate(labels):
        pool = years[number % len(years)][:pool_size]
        for cluster in range(clusters):
            start = int(generator.integers(0, len(pool) - members))
            side = int(generator.integers(16, 25))
            x, y = (int(v) for v in generator.integers(4, SIDE - side - 4, 2))
            centre = 0.03 * np.exp(-cluster / 6) + 0.001
            values = centre + generator.normal(0, 0.15 * centre + 0.0005, members)
            chosen = [pool[start + k] for k in range(members)]
            if cluster == clusters - 2:
                chosen = [chosen[k % 2] for k in range(members)]
            for k, picture in enumerate(chosen):
                name = (file_names or {}).get(len(pictures), picture.file_name)
                pictures.setdefault(picture.image_id, picture)
                error = float(0.0015 + 0.001 * generator.random())
                elements.append(
                    {
                        "image_id": picture.image_id,
                        "file_name": images.get((picture.image_id, label), {}).get("file_name", name),
                        "label": label,
                        "x0": x,
                        "y0": y,
                        "x1": x + side,
                        "y1": y + side,
                        "typicality": float(values[k]),
                        "standard_error": error,
                        "lower_bound": float(values[k]) - 1.645 * error,
                        "specificity": float("nan") if cluster == 0 else float(values[k] / 2),
                        "cluster": cluster,
                        "rank_in_cluster": k,
                    }
                )
                images.setdefault((picture.image_id, label), _image_row(picture, name, label, generator))
            grouped.append(
                {
                    "label": label,
                    "cluster": cluster,
                    "rank": cluster,
                    "size": members * 3,
                    "n_images": len({p.image_id for p in chosen}),
                    "median_typicality": float(np.median(values)),
                    "standard_error": float(0.0006 + 0.0004 * generator.random()),
                    "p_value": 0.21 if cluster == clusters - 1 else 0.0004,
                    "p_value_method": method,
                    "n_groups": len({p.group for p in chosen}),
                    "stability": 0.9 - 0.03 * cluster,
                    "own_rate": 0.3,
                    "control_rate": 0.05,
                }
            )
    for label in labels:
        rows = sorted((e for e in elements if e["label"] == label), key=lambda e: -e["typicality"])
        for rank, row in enumerate(rows):
            row["rank"] = rank
    given: dict[str, Any] = {
        "title": "What is typical of each year in emoji",
        "dataset_name": "emoji",
        "label_name": "year",
        "labels": tuple(labels),
        "ordered": ordered,
        "n_images": {label: len(years[n % len(years)]) for n, label in enumerate(labels)},
        "n_distinct": sum(len(years[n % len(years)]) for n in range(len(labels))),
        "elements": pa.Table.from_pylist(elements),
        "clusters": pa.Table.from_pylist(grouped),
        "images": pa.Table.from_pylist(list(images.values())),
        "open_image": lambda image_id: open_picture(pictures[image_id]),
        "open_map": make_map,
        "facts": FACTS,
        "warnings": ("Scores are in-sample: the model was fine-tuned on the images it scores.",),
        "unreadable": (("2019/broken.png", "not an image: the file starts with text"),),
        "duplicates": (("2016/1f600.webp", "2016/copy-of-1f600.webp"),),
        "training": [
            {
                "step": float(step),
                "loss": 0.25 + 0.2 * np.exp(-step / 300) + float(generator.normal(0, 0.004)),
                "train_typicality": 0.006 * (1 - np.exp(-step / 400)),
                "validation_typicality": 0.0045 * (1 - np.exp(-step / 350)),
            }
            for step in range(0, 1201, 100)
        ],
        "settings": ReportSettings(clusters=clusters, columns=members),
    }
    return ReportInput(**{**given, **changes})


def _image_row(picture: Picture, name: str, label: str, generator: np.random.Generator) -> dict[str, Any]:
    return {
        "image_id": picture.image_id,
        "file_name": name,
        "label": label,
        "width": SIDE,
        "height": SIDE,
        "group": picture.group,
        "typicality": float(generator.normal(0.004, 0.004)),
        "standard_error": 0.0008,
        "n_draws": 16,
    }


def make_map(image_id: str, label: str) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A smooth map with hills and valleys, the same for the same image and label."""
    generator = np.random.default_rng([int(image_id, 16) % 2**32, *label.encode("utf-8", "replace")])
    coarse = PIL.Image.fromarray(generator.normal(0.003, 0.02, (5, 5)).astype(np.float32))
    smooth = np.asarray(coarse.resize((MAP, MAP), PIL.Image.Resampling.BICUBIC))
    return smooth, (0.0, 0.0, float(SIDE), float(SIDE))


FACTS: dict[str, Any] = {
    "model": {"name": "base", "revision": "0.1.0", "weights_hash": "0f3a9c51d27be884"},
    "seed": 0,
    "dataset_fingerprint": "a1d0c6c33a52b9e7",
    "versions": {"typicality": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
    "stages": {
        "finetune": {"state": "done", "seconds": 312.4, "counts": {"steps": 1200}, "peak_memory_mb": 1820},
        "score": {
            "state": "done",
            "seconds": 148.0,
            "counts": {"images": 4556},
            "unet_evaluations": 91120,
            "peak_memory_mb": 1430,
        },
        "mine": {"state": "done", "seconds": 33.1, "counts": {"elements": 4000, "clusters": 128}},
    },
    "settings": {
        "dataset": {"source": "emoji", "label": "year"},
        "score": {"protocol": "adaptive", "t_min": 0.1, "t_max": 0.7},
        "mine": {"min_images": 3, "clusters": 32},
        "seed": 0,
    },
}


if __name__ == "__main__":
    from typicality.report import write_report

    print(write_report(synthetic_input(method="".join(sys.argv[2:]) or "controls"), Path(sys.argv[1])))
