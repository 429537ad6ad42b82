"""Elements that change together: boxes of change in translated pairs, clustered by how their features moved.

Siglidis et al. 2024, section 4.3: the same change, found in many images, is a consistent change of the label. What is
read here is what `typicality translate` leaves in the run directory (translations.parquet and the latents of its
shards), for the last translation of every pair of labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from torch import Tensor

from typicality.applications.trends.detection import patch_at
from typicality.mining.clusters import cluster_elements
from typicality.mining.features import FeatureExtractor
from typicality.mining.whitening import Whitening
from typicality.store import RunDirectory, foundation

CLUSTERS = 6
MEMBERS = 12
"""Members listed a cluster."""
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("from", "to", "image_id")),
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1")),
        ("change", pa.float32()),
        ("cluster", pa.int32()),
        ("rank_in_cluster", pa.int32()),
    ]
)
"""`trends/changes.parquet`: a row a box of change. `change` is that of its typicality under `to`."""


def translated_folders(directory: RunDirectory) -> tuple[list[Path], int]:
    """Return the folder of the last translation of every pair of labels, where it is finished and of the present model.

    Returns
    -------
    folders, and how many translations were passed over: stopped, or by a model that has been replaced since
    """
    stages = [e for name, e in sorted(directory.record["stages"].items()) if name.startswith("translate ")]
    current = [e for e in stages if e.get("state") == "done" and _holds(directory, e.get("built_on") or {})]
    folders = [directory.path("translate", e["folder"]) for e in current if e.get("folder")]
    return [place for place in folders if (place / "translations.parquet").is_file()], len(stages) - len(current)


def _holds(directory: RunDirectory, built_on: Mapping[str, Any]) -> bool:
    return built_on == foundation(directory.record, built_on)


def consistent_changes(
    folder: Path,
    extractor: FeatureExtractor,
    whitening: Whitening,
    group_of: Mapping[str, str],
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cluster the changes of one translation.

    A change is described by its box's features before and after, read with the same noise; clusters are ranked by the
    median of what typicality under the target label gained.

    Returns
    -------
    rows of `SCHEMA`, and a record a cluster as trends.json has it
    """
    rows = pq.read_table(folder / "translations.parquet").to_pylist()
    before, after = _latents(folder)
    boxes = [(row, box) for row in rows if row["image_id"] in before for box in row["changes"] or ()]
    if not boxes:
        return [], []
    patches = [patch_at(row["image_id"], box["row"], box["column"], box["side"]) for row, box in boxes]
    moved = [whitening.unit(extractor(patches, side.__getitem__)) for side in (before, after)]
    features = np.concatenate(moved, axis=1).astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    label = f"{rows[0]['from']} to {rows[0]['to']}"
    patches = [
        replace(patch, label=label, typicality=box["change"]) for patch, (_, box) in zip(patches, boxes, strict=True)
    ]
    found = cluster_elements(patches, features, lambda i: group_of.get(i, i), clusters=CLUSTERS, seed=seed)
    table = [
        {
            "from": row["from"], "to": row["to"], "image_id": row["image_id"],
            **{name: box[name] for name in ("x0", "y0", "x1", "y1", "change")},
            "cluster": int(found.cluster[i]), "rank_in_cluster": int(found.rank_in_cluster[i]),
        }
        for i, (row, box) in enumerate(boxes)
    ]  # fmt: skip
    records = []
    for cluster in found.clusters:
        members = sorted((r for r in table if r["cluster"] == cluster.cluster), key=lambda r: r["rank_in_cluster"])
        shown = [
            {"image_id": r["image_id"], "box": [r[n] for n in ("x0", "y0", "x1", "y1")], "change": r["change"]}
            for r in members[:MEMBERS]
        ]
        records.append(
            {
                "from": rows[0]["from"], "to": rows[0]["to"], "folder": folder.name, "cluster": cluster.cluster,
                "size": cluster.size, "n_images": cluster.n_images, "median_change": cluster.median_typicality,
                "members": shown,
            }
        )  # fmt: skip
    return table, records


def _latents(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return image_id -> latent (c, h, w) before and after."""
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for path in sorted(folder.glob("shards/*.parquet")):
        ids = pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
        with safe_open(path.with_suffix(".safetensors"), "pt") as arrays:
            before |= dict(zip(ids, arrays.get_tensor("before").float(), strict=True))
            after |= dict(zip(ids, arrays.get_tensor("after").float(), strict=True))
    return before, after
