"""The tables that a run leaves behind."""

from __future__ import annotations

import math

import numpy as np
import pyarrow.parquet as pq

from typicality.mining.clusters import cluster_elements
from typicality.mining.tables import CLUSTERS_SCHEMA, ELEMENTS_SCHEMA, clusters_table, elements_table, in_table_order


def test_tables_hold_every_patch_and_cluster(make_patch, tmp_path):
    """Two labels with five and one patches: ranks count from 0 in each label, and the bound is 1.645 errors lower."""
    patches = in_table_order(
        {
            "y": [make_patch("c", "y", typicality=7.0, standard_error=2.0)],
            "x": [make_patch(name, row=i, typicality=5.0 - i, specificity=1.0) for i, name in enumerate("abcde")],
        }
    )
    clustering = cluster_elements(patches, np.ones((6, 3), dtype=np.float32), str)
    elements = elements_table(patches, clustering, lambda image_id: f"folder/{image_id}.png")
    clusters = clusters_table(clustering.clusters)
    assert elements.schema == ELEMENTS_SCHEMA
    assert clusters.schema == CLUSTERS_SCHEMA
    assert elements["label"].to_pylist() == ["x"] * 5 + ["y"]
    assert elements["rank"].to_pylist() == [0, 1, 2, 3, 4, 0]
    assert elements["file_name"][5].as_py() == "folder/c.png"
    assert elements["row"].to_pylist() == [0, 1, 2, 3, 4, 0]
    assert (elements["x1"][1].as_py(), elements["y0"][1].as_py()) == (1, 1)
    np.testing.assert_allclose(elements["lower_bound"][5].as_py(), 7 - 2 * 1.6448536, rtol=1e-6)
    assert math.isnan(elements["specificity"][5].as_py())
    assert clusters["label"].to_pylist() == ["x", "y"]
    assert clusters["size"].to_pylist() == [5, 1]
    assert clusters["p_value"][0].as_py() == 2**-5
    assert math.isnan(clusters["p_value"][1].as_py())
    assert clusters["few_images"].to_pylist() == [False, True]
    pq.write_table(elements, tmp_path / "elements.parquet")
    again = pq.read_table(tmp_path / "elements.parquet")
    assert again.schema == ELEMENTS_SCHEMA
    assert repr(again.to_pylist()) == repr(elements.to_pylist())


def test_empty_tables():
    clustering = cluster_elements([], np.zeros((0, 3), dtype=np.float32), str)
    assert elements_table([], clustering, str).schema == ELEMENTS_SCHEMA
    assert clusters_table([]).schema == CLUSTERS_SCHEMA
