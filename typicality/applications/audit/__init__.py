"""Audit a labelled data set: wrong and confusable labels, shortcuts, near-duplicates.

The schema of what it writes is in `findings`, the grammar of `--fail-on` in `gates`.
"""
