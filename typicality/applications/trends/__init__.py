"""Trends: when visual elements appear, peak and vanish over ordered labels, and which labels look alike.

What is written to `trends/` in the run directory:

`trends.parquet`: a row a cluster and label. `label, cluster` name the cluster as in clusters.parquet; `at` is the label
looked at and `position` its place in the order; `rate, rate_low, rate_high` the share of sampled images of `at` in
which the cluster is detected, with a 90% bootstrap interval over groups (joined with Wilson's bounds for as many groups
where the rate is 0 or 1 or there are fewer than eight of them), null where it was not measured; `n_images, n_groups`
the number of these images and of their groups; `typicality, typicality_low, typicality_high` the mean score of the
cluster's defining members under the prompt of `at` (NaN where there are too many labels); `n_members` of the cluster.

A hash splits groups in two halves. Members of one half define a cluster (its centroid and radius), images of the other
are searched for it, mined or not: so that no image is found because the cluster comes from it, and none of its label's
clearest images is missing. A cluster whose defining members come from fewer than four groups is not measured.

`trends.json`:

    {
      "schema": 1, "label_name": "year", "labels": ["2016", ...], "ordered": true, "images_a_label": 150,
      "level": 0.9, "significant_at": 0.05, "n_rising": 4, "n_falling": 7, "n_unmeasured": 0,
      "warnings": ["..."],
      "timelines": [                      strongest significant trend first, then the others
        {"label": "2016", "cluster": 0, "rank": 0, "direction": "rise" | "fall" | "none",
         "slope": share of images a step of the order, "p_value": ..., "adjusted_p_value": ...,
         "appears": "2016" | null, "peaks": "2016", "vanishes": "2019" | null, "change": last rate minus first,
         "measured": true, "radius": smallest cosine that counts as a detection,
         "at": [{"label": "2016", "rate": .41, "low": .35, "high": .47, "n_images": 140, "n_groups": 140,
                 "typicality": 0.003 | null, "typicality_low": ..., "typicality_high": ...}, ...],
         "members": [{"image_id": "...", "box": [x0, y0, x1, y1]}, ...],
         "found": {"2016": [{"image_id": "...", "box": [...], "similarity": .83}, ...], ...}},
        ...],
      "similarity": {"labels": [...], "share": [[...]], "lift": [[...]], "low": [[...]], "high": [[...]]},
      "changes": [                        elements that change together in pairs translated by the present model
        {"from": "2016", "to": "2024", "cluster": 0, "size": 31, "n_images": 28, "median_change": 0.004,
         "members": [{"image_id": "...", "box": [...], "change": .006}, ...]}, ...],
      "plots": {"timelines": "timelines.svg", "similarity": "similarity.svg"},
      "unet_evaluations": ..., "seconds": ...
    }

Boxes are pixels of the original image. `slope` is that of the test: within groups that have several labels, and between
the others, of which each counts once. For unordered labels `direction` is "none", slopes and p-values are null, and
`appears` and `vanishes` are null; for elements that were never found `peaks` is null, too. `appears` is also null where
no image of the label before was searched, and `vanishes` passes over labels of which none was. `similarity.share[a][b]`
is the share of the elements of label a whose nearest element of another group is of label b; `lift` divides it by what
chance would give, and `low` and `high` are the 90% bootstrap interval of `lift` over groups.
"""
