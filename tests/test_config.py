"""Settings as people write them: YAML without quotes, and values that could not be kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from typicality.api import settings_for
from typicality.config import config_names, config_of, merge, parse_assignment, read_config, resolve
from typicality.errors import SettingsError


def test_the_null_prompt_needs_no_quotes(tmp_path: Path) -> None:
    """YAML reads the key null as no value; it can only mean the setting of that name."""
    file = tmp_path / "settings.yaml"
    file.write_text("prompt:\n  template: a {label} car\n  null: a car\n")
    for layer in (read_config(file), parse_assignment("prompt={template: 'a {label} car', null: a car}")):
        assert resolve(layer).prompt.null == "a car"
    assert resolve(parse_assignment("prompt.null=a car")).prompt.null == "a car"


def test_a_template_alone_gets_its_null_prompt() -> None:
    """However it was set; the default template keeps the null prompt that it has always had."""
    assert resolve({"prompt": {"template": "a {label} car"}}).prompt.null == "a car"
    assert resolve(parse_assignment("prompt.template='{label} car'")).prompt.null == "car"
    assert resolve().prompt.model_dump() == {"template": "an image of {label}", "null": "an image"}


def test_a_null_prompt_that_is_given_is_kept() -> None:
    """An empty one, too, and wherever it stands; a null of None is one that is not given."""
    template, null = {"prompt": {"template": "a {label} car"}}, {"prompt": {"null": ""}}
    for layers in ((template, null), (null, template), (merge(template, null),)):
        assert resolve(*layers).prompt.null == ""
    assert resolve(template, {"prompt": {"null": None}}).prompt.null == "a car"


def test_another_template_takes_the_null_prompt_of_the_former_along() -> None:
    """A data set's own pair of prompts is replaced as a pair; the same template again changes nothing."""
    pair = {"prompt": {"template": "noto emoji, {label}", "null": "emoji"}}
    assert resolve(pair, {"prompt": {"template": "a smiley of {label}"}}).prompt.null == "a smiley"
    assert resolve(pair, {"prompt": {"template": "noto emoji, {label}"}}).prompt.null == "emoji"
    assert resolve(pair, {"prompt": {"null": "x"}}, {"prompt": {"template": "a smiley of {label}"}}).prompt.null == "x"


@pytest.mark.parametrize("name", config_names())
def test_shipped_null_prompts_are_what_would_be_made(name: str) -> None:
    """Were one to differ, the sentence without its label would be another thing for that data set alone."""
    shipped = config_of(name)["prompt"]
    assert resolve(config_of(name)).prompt.null == shipped["null"]
    assert resolve({"prompt": {"template": shipped["template"]}}).prompt.null == shipped["null"]


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    """Not every generator takes one, and the error would come in the middle of a run."""
    with pytest.raises(SettingsError, match=f"setting seed = {seed}: input should be"):
        resolve({"seed": seed})
    assert resolve({"seed": 2**31 - 1}).seed == 2**31 - 1


def test_offline_holds_for_the_data_too() -> None:
    """It is one wish, under `model`; and a record of a run says it of its data set, which is opened again alone."""
    settings = resolve(parse_assignment("model.offline=true"))
    assert settings.dataset.offline
    assert resolve(settings.model_dump()) == settings
    assert not resolve().dataset.offline


def test_labels_that_are_numbers_need_no_quotes() -> None:
    settings = resolve(parse_assignment("dataset={labels: [2016, 1.5, 2020-02-01, new], label: 1999, group: 7}"))
    assert settings.dataset.labels == ("2016", "1.5", "2020-02-01", "new")
    assert (settings.dataset.label, settings.dataset.group) == ("1999", "7")


def test_labels_that_yaml_takes_for_truth_values_are_asked_for_in_quotes() -> None:
    """`yes` and `true` have become the same by the time they are read."""
    with pytest.raises(SettingsError, match="in quotes"):
        resolve(parse_assignment("dataset.labels=[yes, no]"))


def test_a_timestep_that_no_model_has_is_refused() -> None:
    """They are 0 to 999; another one would fail at the features, after all scores."""
    with pytest.raises(SettingsError, match=r"mine\.timestep = 1000"):
        resolve({"mine": {"timestep": 1000}})
    assert resolve({"mine": {"timestep": 999}}).mine.timestep == 999


@pytest.mark.parametrize("name", ["draws", "refine_draws"])
def test_draws_come_in_pairs(name: str) -> None:
    """Five draws would be taken as two pairs and recorded as five; the published protocol has none."""
    with pytest.raises(SettingsError, match=f"score.{name} must be even, not 5"):
        resolve({"score": {name: 5}})
    assert getattr(resolve({"score": {name: 6}}).score, name) == 6
    assert getattr(resolve({"score": {name: 5, "protocol": "paper"}}).score, name) == 5


def test_a_folder_with_the_name_of_a_builtin_data_set_has_not_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_for("flags").dataset.group == "code"
    assert settings_for("flags").dataset.source == "flags"
    (tmp_path / "flags").mkdir()
    assert settings_for("flags").dataset.group is None


def test_places_are_recorded_as_they_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is used from another directory later; names of models and data sets stay names."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "own.yaml").write_text("dataset:\n  source: photos\n")
    monkeypatch.chdir(tmp_path)
    found = settings_for("photos", model="weights", config="own.yaml")
    assert (found.dataset.source, found.model.name) == (str(tmp_path / "photos"), str(tmp_path / "weights"))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert settings_for("link").dataset.source == str(tmp_path / "link")  # whose name is that of the data set
    assert settings_for("photos", model="owner/name").model.name == "owner/name"
    assert settings_for("photos", model="base").model.name == "base"


def test_a_section_is_no_value(tmp_path: Path) -> None:
    """Also beside a file that has the section; the message names a setting of it."""
    (tmp_path / "own.yaml").write_text("prompt: {template: 'a {label}', null: a}\n")
    file = read_config(tmp_path / "own.yaml")
    for layers in (["prompt=the {label}"], ["prompt.template=a {label} car", "prompt=the {label}"]):
        with pytest.raises(
            SettingsError, match=r"prompt = 'the \{label\}': prompt is a section: use prompt\.template="
        ):
            resolve(file, *map(parse_assignment, layers))
    with pytest.raises(SettingsError, match=r"score is a section: use score\.protocol="):
        resolve(parse_assignment("score=8"))


def test_a_separator_that_yaml_has_eaten_is_asked_for_in_quotes() -> None:
    """A bare | begins a block of text there, of which nothing follows: labels would not be split, without a word."""
    with pytest.raises(SettingsError, match=r'label_separator = .*: write "\|" with its quotes'):
        resolve(parse_assignment("dataset.label_separator=|"))
    with pytest.raises(SettingsError, match="nothing can be split"):
        settings_for("emoji", label_separator="")
    assert resolve(parse_assignment('dataset.label_separator="|"')).dataset.label_separator == "|"


def test_a_model_that_may_not_be_looked_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def refuse(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path) == "/locked/model":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(SettingsError, match=r"model\.name: /locked/model cannot be looked for: Permission denied"):
        settings_for("emoji", model="/locked/model")


@pytest.mark.parametrize("source", ["cardb", "cardb/", "./cardb", "./cardb/"])
def test_a_folder_with_the_name_of_a_known_data_set_has_its_settings(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the name was completed; one that is elsewhere, or is built in, is another data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cardb").mkdir()
    (tmp_path / "other" / "cardb").mkdir(parents=True)
    (tmp_path / "flags").mkdir()
    found = settings_for(source)
    assert found.prompt.template == config_of("cardb")["prompt"]["template"]
    assert found.dataset.source == str(tmp_path / "cardb")
    assert settings_for("other/cardb").prompt == settings_for("flags/").prompt == resolve().prompt
