"""Any labelled image collection as one sequence of records: see `load_dataset`."""

from typicality.dataset.builtin.catalogue import DatasetInfo, builtin_datasets, is_opened_here
from typicality.dataset.images import LabelledImages
from typicality.dataset.load import load_dataset
from typicality.dataset.view import prepare, view_shape

__all__ = [
    "DatasetInfo",
    "LabelledImages",
    "builtin_datasets",
    "is_opened_here",
    "load_dataset",
    "prepare",
    "view_shape",
]
