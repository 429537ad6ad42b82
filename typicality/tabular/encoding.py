"""Rows as vectors: numbers by normal scores, categories by one column a choice; and back.

A number becomes the normal quantile of its rank among the training rows (ties share their mean rank), as TabDDPM does
(Kotelnikov et al. 2023, section 3.3); between observed values the map is linear, and the inverse never leaves the
observed range. A category becomes centred indicators, of standard deviation at most 1; the largest one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri

from typicality.tabular.columns import Column

KNOTS = 1000
SCALE = 2.0  # of indicators: the standard deviation of a half-and-half choice becomes 1


@dataclass(frozen=True)
class NumberCode:
    """Values (k,) in ascending order and their normal scores."""

    values: np.ndarray
    scores: np.ndarray
    width: int = 1

    def encode(self, values: np.ndarray) -> np.ndarray:
        return np.interp(values, self.values, self.scores)[:, None]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.interp(codes[..., 0], self.scores, self.values)


@dataclass(frozen=True)
class ChoiceCode:
    """Share of every choice among the training rows."""

    shares: np.ndarray

    @property
    def width(self) -> int:
        return len(self.shares)

    def encode(self, values: np.ndarray) -> np.ndarray:
        return SCALE * ((values[:, None] == np.arange(self.width)) - self.shares)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return (codes / SCALE + self.shares).argmax(-1).astype(np.float64)


@dataclass(frozen=True)
class Encoding:
    """How rows of m columns become vectors of d numbers; `owner` (d,) is the column of each number."""

    codes: tuple[NumberCode | ChoiceCode, ...]
    whole: tuple[bool, ...]

    @property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.codes)), [code.width for code in self.codes])

    def encode(self, values: Float[np.ndarray, "n m"]) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, "n d"]]:
        """Return the vectors, 0 where nothing is known, and what is known."""
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        vectors = np.concatenate([code.encode(filled[:, i]) for i, code in enumerate(self.codes)], axis=1)
        wide = known[:, self.owner]
        return np.where(wide, vectors, 0.0).astype(np.float32), wide

    def decode(self, vectors: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n m"]:
        """Return rows in the units of the table; whole numbers are whole, categories positions."""
        ends = np.cumsum([code.width for code in self.codes])
        columns = [
            code.decode(vectors[..., end - code.width : end]) for code, end in zip(self.codes, ends, strict=True)
        ]
        return np.stack([np.rint(c) if whole else c for c, whole in zip(columns, self.whole, strict=True)], axis=-1)


def fit_encoding(columns: Sequence[Column], values: Float[np.ndarray, "n m"]) -> Encoding:
    """Fit the encoding of modelled columns on these rows alone."""
    codes: list[NumberCode | ChoiceCode] = []
    for i, column in enumerate(columns):
        known = values[~np.isnan(values[:, i]), i]
        if column.kind == "category":
            counts = np.bincount(known.astype(int), minlength=len(column.choices))
            codes.append(ChoiceCode(counts / max(1, len(known))))
        else:
            codes.append(number_code(known if len(known) else np.zeros(1)))
    return Encoding(tuple(codes), tuple(column.kind == "integer" for column in columns))


def number_code(known: Float[np.ndarray, " n"]) -> NumberCode:
    """Return the normal scores of the different values among `known`, of KNOTS of them at most."""
    values, counts = np.unique(known, return_counts=True)
    scores = ndtri((np.cumsum(counts) - counts / 2) / len(known))
    if len(values) > KNOTS:
        kept = np.unique(np.linspace(0, len(values) - 1, KNOTS).round().astype(int))
        values, scores = values[kept], scores[kept]
    return NumberCode(values, scores)
