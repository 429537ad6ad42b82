"""Strings and numbers as they are shown."""

from __future__ import annotations

import json

import pytest

from typicality.report.text import clean, duration, milli, plural, safe_json, slugs


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


def test_slugs_are_ascii_unique_and_never_the_overview() -> None:
    names = ["Café", "cafe", "日本", "overview", "../../etc"]
    assert list(slugs(names).values()) == ["cafe", "cafe-2", "label-3", "overview-2", "etc"]


def test_safe_json_cannot_leave_its_script_and_reads_back() -> None:
    content = ["</script><script>alert(1)</script>", "<!--", "\u2028\u2029", "&amp;", "\ud800"]
    text = safe_json(content)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == content


def test_safe_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json(float("nan"))


def test_small_words() -> None:
    assert (plural(1, "image"), plural(1200, "image")) == ("1 image", "1,200 images")
    assert (duration(2.34), duration(59.7), duration(3700)) == ("2.3 s", "1 min", "1 h 1 min")
