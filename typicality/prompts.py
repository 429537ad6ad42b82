"""The only author of prompts: training, scoring and features all take theirs from here.

A template is a sentence with one `{label}`; the null prompt is the same sentence without its label. Where nobody has
written the null prompt, `without_label` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from typicality.errors import SettingsError

FIELD = "{label}"
SOMETHING = "an image"
"""Stands where the label was all that the sentence spoke of."""
PREPOSITIONS = frozenset(
    "about among around as at before after behind below between beside by during for from in inside into near of on "
    "onto over since through to under until via with within".split()
)
ARTICLES = frozenset(("a", "an", "the"))
DEMONSTRATIVES = frozenset(("this", "these", "those"))
DETERMINERS = ARTICLES | DEMONSTRATIVES | frozenset("another her his its many my our some their two your".split())
CONJUNCTIONS = frozenset(("and", "or", "&"))
CLAUSES = frozenset("that which who where how what when while as".split())
"""Words that open a clause. One with a subject of its own needs its verb."""
LEADING = PREPOSITIONS | ARTICLES | DEMONSTRATIVES | CONJUNCTIONS | CLAUSES | frozenset(
    "called named labelled labeled titled dated taken made built showing depicting category class decade era label "
    "period style type year".split()
)  # fmt: skip
"""Words that say nothing once the label that followed them is gone."""
PRONOUNS = frozenset(("it", "its", "them"))
BE = frozenset(("is", "are", "was", "were"))
VERBS = BE | frozenset(("that", "which", "who", "where"))
TRANSITIVE = frozenset("contains depicts had has have portrays represents shows".split())
HOLDING = frozenset("containing featuring having holding including portraying representing using wearing".split())
"""These and TRANSITIVE dangle when the label was what they act on: it followed at once, or after an article."""
SUBJECTS = frozenset(("here", "he", "it", "she", "there", "they"))
BRACKETED = re.compile(r"\([^()]*\{label\}[^()]*\)|\[[^\[\]]*\{label\}[^\[\]]*\]")
WORD = re.compile(r"[\"'‘“]*[\w-]*\{label\}[\w'’”\"-]*")
"""The label with what clings to it: "mid-{label}s", "'{label}'"."""
NOTHING = r"(?:(?:an?|the|years?) )*"
PAIRED = re.compile(
    rf"\b(?:between|both|either) {NOTHING}{WORD.pattern} (?:and|or|&) "
    rf"|\b(?:between|both|either) {NOTHING}[\w-]+ (?:and|or|&) {NOTHING}{WORD.pattern}"
    rf"|\bfrom {NOTHING}{WORD.pattern} (?:to|till|until|through) \d",
    re.IGNORECASE,
)
"""One of two things that are named together: "between {label} and 1950"."""
SPOKEN_WITH_VOWEL = re.compile(r"(?!eu|uni(?![dmn])|us[eu]|once?\b)[aeiou]|hour|honest|heir|[fhlmnrsx]-", re.IGNORECASE)


@dataclass(frozen=True)
class Prompts:
    """Turns labels into prompts.

    Parameters
    ----------
    template : a sentence with `{label}` exactly once, for instance "a car from the {label}s"
    null : the same sentence without its label, for instance "a car"
    """

    template: str
    null: str

    def __post_init__(self) -> None:
        if self.template.count(FIELD) != 1:
            raise SettingsError(
                f"prompt.template must hold {FIELD} exactly once, but is {self.template!r}; "
                "write for instance 'a car from the {label}s'"
            )
        if FIELD in self.null:
            raise SettingsError(f"prompt.null is the prompt without a label, but holds {FIELD}: {self.null!r}")

    def of(self, label: str) -> str:
        """Return the prompt of one label. Underscores become spaces, as in folder names."""
        return self.template.replace(FIELD, label.replace("_", " "))

    def of_all(self, labels: Sequence[str]) -> list[str]:
        """Return the null prompt followed by the prompt of every label: the order every stage uses.

        Raises
        ------
        SettingsError : when two labels share a prompt, or one has the null prompt: no model could tell them apart.
        """
        seen: dict[str, str] = {}
        for label in labels:
            prompt = self.of(label)
            if prompt == self.null:
                raise SettingsError(
                    f"the label {label!r} has the prompt {prompt!r}, which is also the prompt without a label "
                    "(prompt.null): change one of them"
                )
            if (other := seen.setdefault(prompt, label)) != label:
                raise SettingsError(
                    f"the labels {other!r} and {label!r} have the same prompt {prompt!r}, for underscores become "
                    "spaces: rename one of them, or give both the same name"
                )
        return [self.null, *(self.of(label) for label in labels)]


def without_label(template: str) -> str:
    """Return a template without `{label}` and without the words that would be left dangling.

    "a car from the {label}s" -> "a car", "a {label} car" -> "a car", "a photo of a {label} x-ray" -> "a photo of an
    x-ray", "a photo, {label}, at night" -> "a photo, at night". Before the label go articles, prepositions and words
    such as "year" or "called", unless a noun comes after it that they then belong to. "an image" stands for what was
    nothing but its label: "{label}" -> "an image", "the {label} at night" -> "an image at night". Words are those of
    English: in another language write the null prompt yourself.

    Raises
    ------
    SettingsError : for a sentence that says nothing without its label, such as "a car between {label} and 1950".
    """
    found = WORD.search(text := BRACKETED.sub(FIELD, template))
    if found is None:
        return " ".join(template.split())
    if PAIRED.search(text):
        raise _none_to_make(template)
    before, after = text[: found.start()].split(), text[found.end() :].split()
    if len(after) > 1 and _plain(after[0]) in PREPOSITIONS and _plain(after[1]) in PRONOUNS:
        after = after[2:]
    if after and after[0] in CONJUNCTIONS:
        after = after[1:]
        if after and _plain(after[0]) in DETERMINERS and before and _plain(before[-1]) in ARTICLES:
            before.pop()
    if after and after[0][0].isalnum() and _plain(after[0]) not in PREPOSITIONS | VERBS:
        return " ".join([*_agreeing(before, after[0]), *after])
    was_head = bool(before)
    kept = _not_dangling(before, template)
    if after and _plain(after[0]) in BE and CLAUSES & {_plain(word) for word in before[len(kept) :]}:
        raise _none_to_make(template)
    before = kept
    if before:
        before[-1] = before[-1].rstrip(",;:-–—")
    elif after and not after[0][0].isalnum() and not was_head:
        after = " ".join(after).lstrip(",.;:-–— ").split()
    else:
        before = [SOMETHING]
    rest = " ".join(after)
    return " ".join(before) + (" " if before and rest[:1] not in {*",.;:!?", ""} else "") + rest


def _not_dangling(words: list[str], template: str) -> list[str]:
    """Return the words without those at their end that say nothing once the label that followed them is gone.

    The verb of a clause with a subject of its own stays: "a street as it was in {label}" -> "a street as it was".

    Raises
    ------
    SettingsError : where such a verb led to the label itself: "a photo where the sky is {label}".
    """
    words = list(words)
    at_once = True  # no preposition came between the word and the label
    while words:
        *others, last = map(_plain, words)
        if last in BE or (last in TRANSITIVE and at_once):
            if any(word in CLAUSES for word in others) and others[-1] not in CLAUSES | {"there"}:
                if at_once:
                    raise _none_to_make(template)
                break
            words.pop()
            if words and _plain(words[-1]) in SUBJECTS:
                words.pop()
        elif not last or last in LEADING or (last in HOLDING and at_once):
            words.pop()
            at_once = at_once and last not in PREPOSITIONS
        else:
            break
    return words


def _none_to_make(template: str) -> SettingsError:
    return SettingsError(
        f"no prompt without a label can be made from prompt.template {template!r}: write one as prompt.null "
        "(--null-prompt), for instance 'an image'"
    )


def _plain(word: str) -> str:
    """Return a word in lower case, without punctuation around it."""
    return word.strip(",.;:!?-–—'\"()[]").lower()


def _agreeing(before: list[str], following: str) -> list[str]:
    """Return the words with the article at their end, if there is one, as `following` asks for it: a or an."""
    if not before or before[-1].lower() not in ("a", "an"):
        return before
    article = before[-1][0] + ("n" if SPOKEN_WITH_VOWEL.match(following) else "")
    return [*before[:-1], article]
