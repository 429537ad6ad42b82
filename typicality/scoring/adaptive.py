"""The mathematics of adaptive scoring: what a few draws say about a box, and which boxes deserve more.

Arrays only. A box has an unknown score theta, an observed mean y of n units, and a noisy variance of that mean.

* **Variances** of 2 to 8 units are shrunk towards a log-linear trend over all boxes, with prior degrees of freedom
  from the data (Smyth 2004, "Linear models and empirical Bayes methods", section 6, as limma's trended prior). The
  noise of T = D^2 + 2 D (eps - e_c) scales with D, so D^2, the denoising error and the image's mean variance foretell
  most of it.
* **Scores** are combined with a regression on D^2 (empirical Bayes, Efron & Morris 1973): theta ~ N(m, tau^2) given
  D^2, so the posterior mean is m + w (y - m) with w = tau^2 / (tau^2 + v). It serves ranking alone; what is reported
  is the unbiased mean of fresh draws.
* **Inclusion**: the chance that theta lies above the threshold at which as many boxes are expected as are wanted.
  Boxes whose chance is neither near 0 nor near 1 are undecided.

Everything is fitted from sums over images, in one stream each, and cross-fitted: an image's prior comes from others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import digamma, polygamma, stdtr, stdtrit

FOLDS = 4
MIN_IMAGES = 48
"""Fewer images of a label than this, and scores stay as they were observed: a prior from a dozen images follows the
most typical of them and ranks worse than no prior (reports/benchmarks/README.md)."""
MAX_FREEDOM = 100.0
BINS = 12
"""Bins of log D^2, each a factor of two wide."""


# ---------------------------------------------------------------------------------------------- variances


@dataclass
class VarianceTrend:
    """A log-linear trend of variances over predictors, from sums alone.

    `add` observations of any number, then `solve`. The logarithms of variances near 0 would dominate: whoever adds
    them raises them first, as `mining.selection.boxes_of` does, to 1e-4 of their image's mean.
    """

    columns: int
    n: float = 0.0
    gram: np.ndarray = field(default_factory=lambda: np.zeros(0))
    moment: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: float = 0.0

    def __post_init__(self) -> None:
        if not self.gram.size:
            self.gram = np.zeros((self.columns + 1, self.columns + 1))
            self.moment = np.zeros(self.columns + 1)

    def add(self, predictors: np.ndarray, variances: np.ndarray) -> None:
        """Add (n, columns) predictors and (n,) variances > 0."""
        x = np.column_stack([np.ones(len(predictors)), predictors])
        y = np.log(variances)
        self.n += len(y)
        self.gram += x.T @ x
        self.moment += x.T @ y
        self.square += float(y @ y)

    def __add__(self, other: VarianceTrend) -> VarianceTrend:
        return VarianceTrend(
            self.columns, self.n + other.n, self.gram + other.gram, self.moment + other.moment,
            self.square + other.square,
        )  # fmt: skip

    def solve(self, freedom: float) -> FittedTrend:
        """Fit the trend of variances that have so many degrees of freedom each."""
        ridge = 1e-6 * np.trace(self.gram) / len(self.gram) * np.eye(len(self.gram))
        beta = np.linalg.solve(self.gram + ridge, self.moment)
        residual = (self.square - 2 * beta @ self.moment + beta @ self.gram @ beta) / max(self.n, 1.0)
        half = max(freedom, 1e-3) / 2
        beta[0] += np.log(half) - digamma(half)  # E log(chi^2_d / d) = digamma(d/2) - log(d/2)
        excess = residual - float(polygamma(1, half))
        prior = MAX_FREEDOM if excess <= 0 else min(MAX_FREEDOM, 2 * inverse_trigamma(excess))
        return FittedTrend(beta, prior)


@dataclass(frozen=True)
class FittedTrend:
    """log variance = beta . (1, predictors), worth `prior` degrees of freedom."""

    beta: np.ndarray
    prior: float

    def predict(self, predictors: np.ndarray) -> np.ndarray:
        """(..., columns) -> (...)."""
        return np.exp(np.clip(self.beta[0] + predictors @ self.beta[1:], -80, 80))

    def moderate(self, variances: np.ndarray, freedom: Any, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shrink variances with `freedom` towards `predicted`; return them and their degrees of freedom."""
        d = np.asarray(freedom, dtype=np.float64)
        known = np.where(d > 0, variances, 0.0)
        return (self.prior * predicted + d * known) / (self.prior + d), self.prior + d


def inverse_trigamma(value: float) -> float:
    """Solve trigamma(x) = value for x > 0 by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    if value > 1e7:
        return 1 / np.sqrt(value)
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x


# ------------------------------------------------------------------------------------------------- scores


@dataclass
class ScoreTrend:
    """Sums over the boxes of a label in bins of log2 D^2, apart for FOLDS sets of images.

    `origin` is the mean of D^2; the sums are of 1, y, y^2, own variance, predicted variance.
    """

    origin: float
    images: np.ndarray = field(default_factory=lambda: np.zeros(FOLDS))
    sums: np.ndarray = field(default_factory=lambda: np.zeros((5, FOLDS, BINS)))

    def bins(self, shift: np.ndarray) -> np.ndarray:
        """Bin of every D^2; the last one begins at 4 times the mean."""
        with np.errstate(divide="ignore"):
            place = np.floor(np.log2(shift / self.origin)) + BINS - 3
        return np.clip(place, 0, BINS - 1).astype(np.int64)

    def add(self, fold: int, shift: np.ndarray, score: np.ndarray, variance: np.ndarray, predicted: np.ndarray) -> None:
        """Add all boxes of an image."""
        at = self.bins(shift).ravel()
        self.images[fold] += 1
        y = score.astype(np.float64).ravel()
        for i, values in enumerate((np.ones_like(y), y, y * y, variance.ravel(), predicted.ravel())):
            self.sums[i, fold] += np.bincount(at, values, BINS)

    def without(self, fold: int) -> BoxPrior | None:
        """The prior of an image of this set, from the images of the others; None where they are too few.

        Bins with few boxes lean on their label's whole: that counts as many boxes as four images have, since the
        boxes of an image are not independent.
        """
        images = self.images.sum() - self.images[fold]
        if images < MIN_IMAGES:
            return None
        n, y, square, own, predicted = self.sums.sum(1) - self.sums[:, fold]
        lean = 4 * n.sum() / images
        mean = (y + lean * y.sum() / n.sum()) / (n + lean)
        scale = (own + lean * own.sum() / n.sum()) / (predicted + lean * predicted.sum() / n.sum())
        noise = own + lean * own.sum() / n.sum()
        signal = np.maximum(square - 2 * mean * y + n * mean**2, 0) - own
        ratio = (signal + lean * max(signal.sum(), 0.0) / n.sum()) / noise
        return BoxPrior(mean, np.clip(ratio, 0.02, 50.0), scale)


@dataclass(frozen=True)
class BoxPrior:
    """For every bin of D^2: the mean score m, tau^2 over the first pass's v, and own over predicted variance.

    Within a bin tau^2 is taken proportional to a box's own v: where the label changes the prediction more, both the
    score and its noise grow (measured on the embedded data: the ratio is the same from the lowest D^2 to the highest).
    """

    mean: np.ndarray
    ratio: np.ndarray
    scale: np.ndarray


def combine(
    score: np.ndarray, variance: np.ndarray, mean: np.ndarray, prior_variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of theta ~ N(mean, prior_variance) observed as score with variance."""
    weight = prior_variance / np.maximum(prior_variance + variance, np.finfo(float).tiny)
    return mean + weight * (score - mean), np.sqrt(weight * variance)


# ---------------------------------------------------------------------------------------------- inclusion


def inclusion(mean: np.ndarray, deviation: np.ndarray, freedom: np.ndarray, threshold: float) -> np.ndarray:
    """Chance that theta > threshold, theta being mean + deviation * t with so many degrees of freedom."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(deviation > 0, (mean - threshold) / deviation, np.where(mean > threshold, np.inf, -np.inf))
    return stdtr(np.maximum(freedom, 1.0), z)


def threshold_of(mean: np.ndarray, deviation: np.ndarray, freedom: np.ndarray, count: int) -> float:
    """The score above which `count` boxes are expected: sum of inclusion = count. -inf where there are fewer."""
    if count >= len(mean):
        return -np.inf
    if not np.isfinite(deviation).all():  # a single unit tells no error: nothing but the order is known
        return float(np.sort(mean)[-count - 1 :][:2].mean())
    reach = 50 * float(deviation.max(initial=0.0)) + 1e-12
    low, high = float(mean.min()) - reach, float(mean.max()) + reach
    for _ in range(60):
        middle = (low + high) / 2
        if inclusion(mean, deviation, freedom, middle).sum() > count:
            low = middle
        else:
            high = middle
    return high


def quantile(freedom: Any, level: float) -> Any:
    """Quantile of Student's t; of the normal distribution for infinite freedom."""
    return stdtrit(np.minimum(np.maximum(freedom, 1.0), 1e6), level)
