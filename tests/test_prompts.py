"""Prompts: the sentence of a label, the sentence without it, and labels that would share one."""

from __future__ import annotations

import pytest

from typicality.config import resolve
from typicality.errors import InputError
from typicality.prompts import Prompts, without_label


@pytest.mark.parametrize(
    ("template", "null"),
    [
        ("an image of {label}", "an image"),
        ("a car from the {label}s", "a car"),
        ("a car of the year {label}.", "a car."),
        ("a photo - {label}", "a photo"),
        ("a photo of '{label}'", "a photo"),
        ("a photo (year {label}) of a car", "a photo of a car"),
        ("a painting in the style of {label}", "a painting"),
        ("a dog and {label}", "a dog"),
        # what follows is kept
        ("a photo, {label}, at night", "a photo, at night"),
        ("a photo of {label} at night", "a photo at night"),
        ("a car from the {label}s in Paris", "a car in Paris"),
        ("a photo of {label}: a car", "a photo: a car"),
        ("{label}, a photo", "a photo"),
        ("chest x-ray with {label} in it", "chest x-ray"),
        # a noun that follows keeps what belongs to it, and its article fits
        ("{label} car", "car"),
        ("a {label} car", "a car"),
        ("a {label}-era car", "a car"),
        ("a photo of a {label} x-ray", "a photo of an x-ray"),
        ("A {label} image", "An image"),
        ("an {label} unicorn", "a unicorn"),
        ("a {label} and white car", "a white car"),
        ("the faces of {label} people", "the faces of people"),
        # what was said of the second of two keeps its own article
        ("a photo of a {label} and a dog", "a photo of a dog"),
        ("a photo of a {label} and its owner", "a photo of its owner"),
        ("a {label} & white car", "a white car"),
        # verbs that led to the label go, and those of a clause with a subject of its own stay
        ("a photo that was taken in {label}", "a photo"),
        ("a building which is {label}", "a building"),
        ("a photo that shows {label} at night", "a photo at night"),
        ("a person wearing a {label}", "a person"),
        ("the car was made in {label}", "the car"),
        ("a street as it was in {label}", "a street as it was"),
        ("a costume he was wearing in {label}", "a costume he was wearing"),
        ("the colour that the car has in {label}", "the colour that the car has"),
        ("a house where people lived in {label}", "a house where people lived"),
        ("a view from {label} to the sea", "a view to the sea"),
        ("a dog between two trees and {label}", "a dog between two trees"),
        # the label was all that it spoke of
        ("this is {label}", "an image"),
        ("it was made in {label}", "an image"),
        ("{label}", "an image"),
        ("a {label}", "an image"),
        ("{label} at night", "an image at night"),
        ("a {label}, seen from above", "an image, seen from above"),
    ],
)
def test_the_sentence_without_its_label(template: str, null: str) -> None:
    assert without_label(template) == null


@pytest.mark.parametrize(
    "template",
    [
        "a photograph made between {label} and 1950",
        "a photograph made between the years 1940 and {label}",
        "a photo of both {label} and a cat",
        "a car from {label} to 1950",
        "a photo where the sky is {label}",
        "a chest x-ray in which {label} is visible",
        "a photo in which {label} are seen at night",
        "what {label} is",
    ],
)
def test_a_sentence_that_says_nothing_without_its_label_asks_for_the_null_prompt(template: str) -> None:
    """Where one is given, none is made."""
    with pytest.raises(InputError, match=r"prompt\.null \(--null-prompt\)"):
        resolve({"prompt": {"template": template}})
    assert resolve({"prompt": {"template": template, "null": "a photo"}}).prompt.null == "a photo"


def test_two_labels_with_one_prompt_are_named() -> None:
    """Underscores become spaces, so the model would be asked to tell one sentence from itself."""
    prompts = Prompts("an image of {label}", "an image")
    assert prompts.of_all(["new_york", "paris"]) == ["an image", "an image of new york", "an image of paris"]
    with pytest.raises(InputError, match="'new_york' and 'new york' have the same prompt 'an image of new york'"):
        prompts.of_all(["new_york", "paris", "new york"])


def test_a_label_with_the_null_prompt_is_named() -> None:
    """Its typicality would be nought everywhere."""
    with pytest.raises(InputError, match="the label 'photo' has the prompt 'photo'"):
        Prompts("{label}", "photo").of_all(["drawing", "photo"])
