"""Augment: synthetic variants of a run's images that keep their label, or near-miss negatives that have none.

Each is filtered by the measure that the run itself is scored with (`rules.py`). What is left in the run directory, in
`augment/<kind>-<key>/`:

    images/             what was kept, as a data set: PNG files and `metadata.csv` with `file_name`, the label under the
                        run's own name (variants alone), the group of the source, and what was measured
    rows.parquet        a row a synthetic image, kept or not, and why (`run.SCHEMA`)
    sheet.png           sources and what became of them; what was not kept is crossed out
    summary.json        options, counts, the share kept, the reasons

and in `augment/shards-<key>/` pictures (safetensors) and rows (Parquet) as they are finished: neither a run that was
stopped, nor another rule of what is kept, nor `evaluate augment` makes them again.

Negatives have no column of labels and lie in no folder named after one: nobody trains on them by accident.
"""
