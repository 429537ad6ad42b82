"""Show what is typical of each label of an image data set.

    import typicality
    result = typicality.mine("photos/", label="year")
    result.elements.to_pandas(); result.report

The functions have the names of the commands. Heavy packages are imported on first use.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typicality.api import (
        audit,
        augment,
        bench,
        classify,
        datasets,
        diff,
        doctor,
        estimate,
        evaluate_augment,
        evaluate_autoencoder,
        evaluate_classify,
        evaluate_elements,
        evaluate_estimator,
        evaluate_labels,
        evaluate_localize,
        evaluate_planted,
        evaluate_tabular_balance,
        evaluate_tabular_impute,
        evaluate_translate,
        export,
        finetune,
        impute,
        localize,
        mine,
        pretrain,
        report,
        score,
        tabular_balance,
        tabular_impute,
        translate,
        translate_all_pairs,
        trends,
    )

__version__ = version("typicality")
__all__ = [
    "audit",
    "augment",
    "bench",
    "classify",
    "datasets",
    "diff",
    "doctor",
    "estimate",
    "evaluate_augment",
    "evaluate_autoencoder",
    "evaluate_classify",
    "evaluate_elements",
    "evaluate_estimator",
    "evaluate_labels",
    "evaluate_localize",
    "evaluate_planted",
    "evaluate_tabular_balance",
    "evaluate_tabular_impute",
    "evaluate_translate",
    "export",
    "finetune",
    "impute",
    "localize",
    "mine",
    "pretrain",
    "report",
    "score",
    "tabular_balance",
    "tabular_impute",
    "translate",
    "translate_all_pairs",
    "trends",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from typicality import api

        return getattr(api, name)
    raise AttributeError(f"module 'typicality' has no attribute {name!r}")
