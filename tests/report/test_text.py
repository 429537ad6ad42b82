"""Strings and numbers as they are shown."""

from __future__ import annotations

import json

import pytest

from typicality.report.text import beside, clean, duration, many, milli, p_text, plural, safe_json, slugs


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "+12.3"), (-0.00123, "−1.23"), (0.1234, "+123"), (0.0, "0"), (1e-9, "0"), (0.00999, "+9.99"),
     (0.009996, "+10.0"), (float("nan"), "n/a"), (None, "n/a")],
)  # fmt: skip
def test_milli_has_a_sign_and_about_three_digits(value: float | None, text: str) -> None:
    assert milli(value) == text


def test_clean_keeps_markup_but_no_control_characters() -> None:
    assert clean("<b>\n\x00x\u2028y</b>") == "<b> x y</b>"
    assert clean("\ud800") == "?"
    assert clean("  ") == "(blank)"


def test_slugs_are_unique_and_never_the_overview() -> None:
    names = ["Café", "cafe", "Cafe\u0301", "😀", "overview", "../../etc", "\ud800", "❤\ufe0f"]
    expected = ["cafe", "cafe-2", "cafe-3", "label-4", "overview-2", "etc", "label-7", "label-8"]
    assert list(slugs(names).values()) == expected


def test_slugs_keep_letters_of_every_script() -> None:
    """Composed and in one case, as file systems may not tell these apart, with the vowel signs that letters carry."""
    names = ["日本語 2016", "か\u3099", "が", "Ю́ля", "юля", "हिन्दी", "مرحبا بالعالم"]
    expected = ["日本語-2016", "が", "が-2", "ю́ля", "юля", "हिन्दी", "مرحبا-بالعالم"]
    assert list(slugs(names).values()) == expected
    long = slugs(["日" * 100, "日" * 99 + "本", "x" * 100])
    assert [len(slug.encode()) for slug in long.values()] == [60, 62, 60]


@pytest.mark.parametrize(
    ("value", "threshold", "style", "text"),
    [
        (0.2, 0.05, "g", "0.2"), (0.0504, 0.05, "g", "0.0504"), (0.05001, 0.05, "g", "0.05001"),
        (0.05, 0.05, "g", "0.05"), (0.4996, 0.5, "f", "0.4996"), (0.49, 0.5, "f", "0.49"), (0.5, 0.5, "f", "0.50"),
    ],
)  # fmt: skip
def test_a_rounded_number_stays_on_its_side_of_the_threshold(value: float, threshold: float, style, text: str) -> None:
    assert beside(value, threshold, style) == text


def test_p_values_near_the_threshold_are_told_apart_from_it() -> None:
    assert [p_text(p) for p in (0.0504, 0.0496, 0.05, 0.031)] == ["p = 0.0504", "p = 0.0496", "p = 0.05", "p = 0.031"]


def test_safe_json_cannot_leave_its_script_and_reads_back() -> None:
    content = ["</script><script>alert(1)</script>", "<!--", "\u2028\u2029", "&amp;", "\ud800"]
    text = safe_json(content)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == content


def test_safe_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json(float("nan"))


@pytest.mark.parametrize(
    ("noun", "plural_of_it"),
    [
        ("year", "years"), ("category", "categories"), ("day", "days"), ("class", "classes"), ("box", "boxes"),
        ("batch", "batches"), ("years", "years"), ("species", "species"), ("disease_type", "disease_types"),
        ("年代", "年代"), ("style (a)", "style (a)"),
        ("label_y", "label_y"), ("y", "y"), ("YEAR", "YEAR"), ("Category", "Categories"),
    ],
)  # fmt: skip
def test_names_of_columns_have_a_plural(noun: str, plural_of_it: str) -> None:
    assert many(noun) == plural_of_it
    assert plural(3, noun) == f"3 {plural_of_it}"


def test_small_words() -> None:
    assert (plural(1, "image"), plural(1200, "image")) == ("1 image", "1,200 images")
    assert (duration(2.34), duration(59.7), duration(3700)) == ("2.3 s", "1 min", "1 h 1 min")
