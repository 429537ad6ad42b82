"""Settings as people write them: YAML without quotes, and values that could not be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from typicality.config import parse_assignment, read_config, resolve
from typicality.errors import SettingsError


def test_the_null_prompt_needs_no_quotes(tmp_path: Path) -> None:
    """YAML reads the key null as no value; it can only mean the setting of that name."""
    file = tmp_path / "settings.yaml"
    file.write_text("prompt:\n  template: a {label} car\n  null: a car\n")
    for layer in (read_config(file), parse_assignment("prompt={template: 'a {label} car', null: a car}")):
        assert resolve(layer).prompt.null == "a car"
    assert resolve(parse_assignment("prompt.null=a car")).prompt.null == "a car"


def test_labels_that_are_numbers_need_no_quotes() -> None:
    settings = resolve(parse_assignment("dataset={labels: [2016, 1.5, 2020-02-01, new], label: 1999, group: 7}"))
    assert settings.dataset.labels == ("2016", "1.5", "2020-02-01", "new")
    assert (settings.dataset.label, settings.dataset.group) == ("1999", "7")


def test_labels_that_yaml_takes_for_truth_values_are_asked_for_in_quotes() -> None:
    """`yes` and `true` have become the same by the time they are read."""
    with pytest.raises(SettingsError, match="in quotes"):
        resolve(parse_assignment("dataset.labels=[yes, no]"))


@pytest.mark.parametrize("name", ["draws", "refine_draws"])
def test_draws_come_in_pairs(name: str) -> None:
    """Five draws would be taken as two pairs and recorded as five; the published protocol has none."""
    with pytest.raises(SettingsError, match=f"score.{name} must be even, not 5"):
        resolve({"score": {name: 5}})
    assert getattr(resolve({"score": {name: 6}}).score, name) == 6
    assert getattr(resolve({"score": {name: 5, "protocol": "paper"}}).score, name) == 5
