"""A mined run without a model: the tables and the record that one would leave, over a folder of squares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from typicality.config import resolve, settings_key
from typicality.dataset import load_dataset
from typicality.mining.tables import CLUSTERS_SCHEMA, ELEMENTS_SCHEMA


def change_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what run.json of a run says."""
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


def note_mined(record: dict[str, Any]) -> None:
    """Say in run.json that it was mined as it is now, as `mine` does."""
    settings = settings_key(resolve(record["settings"]), "mine")
    fingerprint = record["dataset"]["fingerprint"]
    record["stages"]["mine"] = {"state": "done", "key": "m1", "settings": settings, "fingerprint": fingerprint}


STALE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mined to the end": lambda record: record["stages"]["mine"].update(state="interrupted"),
    "images or labels of .* have changed": lambda record: record["dataset"].update(fingerprint="fewer images"),
    "other settings": lambda record: record["settings"]["score"].update(draws=8),
}
"""What is said of a run whose elements are of an earlier state -> a change of its record that makes it such a run."""


def write_mined(folder: Path, source: Path, per_label: int = 6, **changes: Any) -> Path:
    """Write run.json and the tables of a run over `source` (a folder a label): two clusters a label, alternating.

    Element k of a label is the 12 px square at (2k, k) of its k-th image, of typicality 0.01 (per_label - k).
    """
    settings = resolve({"dataset": {"source": str(source), "label": "folder"}}, changes)
    dataset = load_dataset(settings.dataset)
    elements, clusters, images = [], [], []
    for label in dataset.labels:
        of_label = [i for i in dataset if label in i.labels]
        for k, image in enumerate(of_label):
            images.append(
                {
                    "image_id": image.image_id, "file_name": image.file_name, "label": label, "width": image.width,
                    "height": image.height, "group": image.group, "held_out": False, "typicality": 0.01,
                    "standard_error": 0.001, "n_draws": 4,
                }
            )  # fmt: skip
            if k < per_label:
                elements.append(
                    {
                        "image_id": image.image_id, "file_name": image.file_name, "label": label, "x0": 2 * k, "y0": k,
                        "x1": 2 * k + 12, "y1": k + 12, "typicality": 0.01 * (per_label - k), "standard_error": 0.001,
                        "lower_bound": 0.0, "specificity": float("nan"), "rank": k, "cluster": k % 2,
                        "rank_in_cluster": k // 2, "row": 0, "column": 0, "side": 3,
                    }
                )  # fmt: skip
        clusters += [
            {
                "label": label, "cluster": c, "rank": c, "size": per_label // 2, "n_images": per_label // 2,
                "median_typicality": 0.03, "standard_error": 0.001, "p_value": 0.01, "n_groups": per_label // 2,
                "few_images": False, "mean_specificity": float("nan"), "adjusted_p_value": 0.02 + 0.1 * c,
                "p_value_method": "controls",
            }
            for c in range(2)
        ]  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(elements, schema=ELEMENTS_SCHEMA), folder / "elements.parquet")
    pq.write_table(pa.Table.from_pylist(clusters, schema=CLUSTERS_SCHEMA), folder / "clusters.parquet")
    pq.write_table(pa.Table.from_pylist(images), folder / "images.parquet")
    record = {
        "schema_version": 1, "stages": {}, "settings": settings.model_dump(mode="json"), "model": {"name": "base"},
        "versions": {"typicality": "0"},
        "dataset": {
            "name": dataset.name, "label": dataset.label, "fingerprint": dataset.fingerprint,
            "n_images": len(dataset), "labels": {n: dataset.number_of(n) for n in dataset.labels},
        },
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return folder
