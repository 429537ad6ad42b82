"""The tables of a mined run: elements, clusters (DESIGN.md fixes their first columns) and images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from typicality.mining.clusters import Cluster, Clustering
from typicality.records import LabelledImage, Patch
from typicality.scoring.adaptive import quantile

ELEMENTS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "file_name", "label")),
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1")),
        *((name, pa.float32()) for name in ("typicality", "standard_error", "lower_bound", "specificity")),
        *((name, pa.int32()) for name in ("rank", "cluster", "rank_in_cluster", "row", "column", "side")),
    ]
)
"""A row a patch. Boxes in pixels of the original, x1 and y1 exclusive; ranks from 0; row, column, side in cells."""

CLUSTERS_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        *((name, pa.int32()) for name in ("cluster", "rank", "size", "n_images")),
        *((name, pa.float32()) for name in ("median_typicality", "standard_error", "p_value")),
        ("n_groups", pa.int32()),
        ("few_images", pa.bool_()),
        ("mean_specificity", pa.float32()),
        ("adjusted_p_value", pa.float32()),
        ("p_value_method", pa.string()),
        *((name, pa.float32()) for name in ("stability", "own_rate", "control_rate")),
    ]
)
"""A row a cluster, in order of label and rank; the attributes of `Cluster`. Unknown values are NaN."""


IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("group", pa.string()),
        ("held_out", pa.bool_()),
        ("typicality", pa.float32()),
        ("standard_error", pa.float32()),
        ("n_draws", pa.int32()),
    ]
)
"""A row an image and label: the mean of its map in the first pass, with its error."""


def in_table_order(patches: Mapping[str, Sequence[Patch]]) -> list[Patch]:
    """All patches in the order of the tables, of `features.npy` and of the index: by label, best first."""
    return [patch for label in sorted(patches) for patch in patches[label]]


def elements_table(patches: Sequence[Patch], clustering: Clustering, file_name_of: Callable[[str], str]) -> pa.Table:
    """Build the table of elements. `lower_bound` is one-sided, 95%, by Student's t with the errors' freedom.

    Parameters
    ----------
    patches : in table order (`in_table_order`)
    clustering : of these patches in this order
    file_name_of : image_id -> name in the source
    """
    seen: dict[str, int] = {}
    ranks = []
    for patch in patches:
        ranks.append(seen.get(patch.label, 0))
        seen[patch.label] = ranks[-1] + 1
    typicality = np.array([p.typicality for p in patches], dtype=np.float64)
    errors = np.array([p.standard_error for p in patches], dtype=np.float64)
    boxes = np.array([p.box for p in patches], dtype=np.int32).reshape(-1, 4)
    freedom = np.array([p.freedom for p in patches], dtype=np.float64)
    columns = {
        "image_id": [p.image_id for p in patches],
        "file_name": [file_name_of(p.image_id) for p in patches],
        "label": [p.label for p in patches],
        **{name: boxes[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))},
        "typicality": typicality.astype(np.float32),
        "standard_error": errors.astype(np.float32),
        "lower_bound": (typicality - quantile(freedom, 0.95) * errors).astype(np.float32),
        "specificity": np.array([p.specificity for p in patches], dtype=np.float32),
        "rank": ranks,
        "cluster": clustering.cluster,
        "rank_in_cluster": clustering.rank_in_cluster,
        **{name: [getattr(p, name) for p in patches] for name in ("row", "column", "side")},
    }
    return pa.table(columns, schema=ELEMENTS_SCHEMA)


def clusters_table(clusters: Sequence[Cluster]) -> pa.Table:
    """Build the table of clusters."""
    return pa.Table.from_pylist([asdict(cluster) for cluster in clusters], schema=CLUSTERS_SCHEMA)


def images_table(images: Iterable[LabelledImage], held_out: Collection[str], index: pa.Table) -> pa.Table:
    """Build the table of images from the index of their shards; what the data set no longer holds is left out.

    Parameters
    ----------
    held_out : ids of the images that no model has seen which scored them
    index : image_id, label, mean, standard_error, draws of the maps of the first pass
    """
    known = {image.image_id: image for image in images}
    rows = []
    for entry in index.to_pylist():
        image = known.get(entry["image_id"])
        if image is None or entry["label"] not in image.labels:
            continue
        rows.append(
            {
                "image_id": image.image_id, "file_name": image.file_name, "label": entry["label"],
                "width": image.width, "height": image.height, "group": image.group,
                "held_out": image.image_id in held_out, "typicality": entry["mean"],
                "standard_error": entry["standard_error"], "n_draws": entry["draws"],
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)
