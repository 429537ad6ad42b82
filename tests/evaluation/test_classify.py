"""The diffusion classifier's accuracy and its error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.applications.redesigned import mine
from typicality.evaluation.classify import classify
from typicality.metrics import clustered_error


@pytest.mark.slow
def test_the_error_takes_subjects_for_what_is_independent(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every held-out subject has two designs, which are right or wrong together more often than not."""
    seen = {}

    def kept(values, groups):
        seen["values"], seen["groups"] = values, groups
        return clustered_error(values, groups)

    monkeypatch.setattr("typicality.evaluation.classify.clustered_error", kept)
    found = classify(mine(tmp_path, tiny_model), draws=2)
    assert found.n == len(seen["groups"]) == 2 * len(set(seen["groups"]))
    assert found.accuracy == pytest.approx(seen["values"].mean(), abs=1e-4)
    assert found.standard_error == pytest.approx(clustered_error(seen["values"], seen["groups"]), abs=1e-4)
