"""Which labels are wrong, which cannot be told apart: the losses of every image under every label, with shared noise.

The score of image i under label c is its mean typicality T_ic = E[L(null) - L(c)]; L(null) is the same for all labels,
so differences between labels are differences of denoising losses (Li et al. 2023, "Your Diffusion Model is Secretly a
Zero-Shot Classifier"; Clark & Jaini 2023). Every label sees the same noise, so they are compared pair by pair: a
label leaves when a paired test says that it does worse than the best one, and later rounds are spent on the others.

A score becomes a probability by one temperature for the whole data set, p_ic = softmax(T_ic / temperature), and a given
label is taken to be a random one in a share `noise_rate` of the images. Both are fitted by maximum likelihood of the
given labels, so with a model that has not seen the images (`finetune.folds` above 1) they are calibrated by held-out
likelihood. Without the noise rate a few wrong labels would flatten all probabilities, the right ones' too.

Losses and features of one model know different things about labels. `label_error_score` therefore takes the
probabilities q_ic of a classifier on frozen features beside the losses (probe.py, out of fold),
p_ic = softmax(T_ic / temperature + weight log q_ic), with a weight fitted like the temperature.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp, softmax
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from typicality.applications.audit.findings import REPORTED
from typicality.config import key_of
from typicality.errors import InputError
from typicality.passes import scorer
from typicality.progress import SILENT, Progress
from typicality.run import Run
from typicality.scoring.scorer import Job, Scorer
from typicality.store import write_arrays, write_table

PURPOSE = "labels"
FIRST_ROUND = 4
"""Draws of the first round, in which every label takes part: two antithetic pairs, the fewest with a spread."""
PRUNE_LEVEL = 0.01
"""One-sided level of the paired test that rules a label out, over the number of labels (Bonferroni)."""
PRIOR_UNITS = 4.0
"""Weight of the variance pooled over labels in a pair's own, in degrees of freedom (Smyth 2004)."""
SHARD_IMAGES = 64
LIKELY_WRONG = 0.9
"""Probability of a wrong label from which an image is reported."""
SURE = 1.645
"""Standard errors down to a one-sided 95% bound."""


@dataclass(frozen=True)
class LabelScores:
    """The scores of n images under K labels.

    Attributes
    ----------
    image_ids, groups : (n,)
    labels : (K,)
    given : (n, K) bool, the labels that the image carries
    units : (n, K, u) float32, mean over the map of T for every antithetic pair, in order of rounds; NaN where the
        label had been ruled out for the image, and where a pair was not drawn
    rounds : number of pairs in each round
    held_out : (n,) bool, whether the model that scored the image had not seen it
    """

    image_ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    given: np.ndarray
    units: np.ndarray
    rounds: tuple[int, ...]
    held_out: np.ndarray

    def part(self, rows: np.ndarray) -> LabelScores:
        """The same of some of the images; rows: (n,) bool."""
        at = np.flatnonzero(rows)
        return replace(
            self, image_ids=tuple(self.image_ids[i] for i in at), groups=tuple(self.groups[i] for i in at),
            given=self.given[at], units=self.units[at], held_out=self.held_out[at],
        )  # fmt: skip

    @property
    def mean(self) -> np.ndarray:
        """(n, K) float64 score; where a label was ruled out, in reference to the same draws of the given ones.

        T_c = mean over all draws of the given labels + mean over shared draws of (T_c - given labels).
        """
        units = self.units.astype(np.float64)
        reference = np.where(self.given[:, :, None], units, 0).sum(1) / self.given.sum(1)[:, None]  # (n, u)
        difference = np.nanmean(units - reference[:, None], axis=2)
        return reference.mean(1)[:, None] + difference

    @property
    def draws(self) -> np.ndarray:
        """(n, K) UNet draws behind each score; a pair counts as two."""
        return 2 * np.isfinite(self.units).sum(2)

    @property
    def standard_error(self) -> np.ndarray:
        """(n, K) standard error of the difference between a label's score and that of the given ones (0 if alone)."""
        units = self.units.astype(np.float64)
        reference = np.where(self.given[:, :, None], units, 0).sum(1) / self.given.sum(1)[:, None]
        return np.sqrt(_variance(units - reference[:, None], self.rounds)[0])

    def table(self) -> pa.Table:
        """Return a row an image and label: score, difference to the given label with its error, draws."""
        n, k = self.given.shape
        mean = self.mean
        own = np.where(self.given, mean, 0).sum(1) / self.given.sum(1)
        columns = {
            "image_id": np.repeat(np.array(self.image_ids, dtype=object), k),
            "label": np.tile(np.array(self.labels, dtype=object), n),
            "given": self.given.ravel(),
            "held_out": np.repeat(self.held_out, k),
            "score": mean.ravel().astype(np.float32),
            "difference": (mean - own[:, None]).ravel().astype(np.float32),
            "standard_error": self.standard_error.ravel().astype(np.float32),
            "n_draws": self.draws.ravel().astype(np.int32),
        }
        return pa.table(columns)


@dataclass(frozen=True)
class LabelErrors:
    """How likely each given label is wrong.

    Attributes
    ----------
    score : (n,) log odds, log sum of p over the labels that are not given minus the same over those that are; the
        higher, the likelier is an error; images can be ranked by it
    standard_error : (n,) of the score, from the spread over draws
    probability : (n,) that none of the given labels is right, in view of `noise_rate`
    p : (n, K) probabilities of the labels before the given one is taken into account
    likeliest : (n,) index of the most probable label
    reported : (n,) bool: probability at least 0.9, and above a half at the score's lower 95% bound
    temperature, noise_rate, probe_weight : what was fitted; temperature in units of T; 0 without a probe
    """

    score: np.ndarray
    standard_error: np.ndarray
    probability: np.ndarray
    p: np.ndarray
    likeliest: np.ndarray
    reported: np.ndarray
    temperature: float
    noise_rate: float
    probe_weight: float = 0.0

    def part(self, rows: np.ndarray) -> LabelErrors:
        """The same of some of the images; rows: (n,) bool."""
        names = ("score", "standard_error", "probability", "p", "likeliest", "reported")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True)
class ConfusablePair:
    """Two labels and how often the wrong one of the two fits better: 0 told apart, 0.5 chance; error over groups."""

    labels: tuple[str, str]
    confusion: float
    standard_error: float


# ------------------------------------------------------------------------------------------------ scoring


def rounds_of(draws: int) -> tuple[int, ...]:
    """Return the draws of each round: the total doubles from round to round: 16 -> 4, 4, 8."""
    if draws < FIRST_ROUND or draws % 2:
        raise InputError(f"the audit needs an even number of draws, at least {FIRST_ROUND}, not {draws}")
    rounds = [FIRST_ROUND]
    while sum(rounds) < draws:
        rounds.append(min(sum(rounds), draws - sum(rounds)))
    return tuple(rounds)


def label_scores(
    run: Run,
    draws: int = 16,
    *,
    image_ids: Sequence[str] | None = None,
    level: float = PRUNE_LEVEL,
    progress: Progress = SILENT,
) -> LabelScores:
    """Score images under all labels with shared noise, ruling labels out as soon as a paired test allows it.

    An image's given labels stay to the end, and so does the best of the others. Results are kept in shards in the
    run directory; a call that was stopped continues. The model must be there (`pipeline.ensure_model`).

    Parameters
    ----------
    run : an open run; with `finetune.folds` above 1 every image is scored by a model that has not seen it
    draws : for labels that stay, in rounds of 4, 4, 8, ...; even
    image_ids : which images; all by default
    level : of the test that rules a label out; 0 keeps all labels to the end

    Raises
    ------
    InputError : an impossible number of draws, or fewer than two labels.
    """
    rounds = rounds_of(draws)
    if len(run.dataset.labels) < 2:
        raise InputError(f"the column {run.dataset.label} holds one label only: nothing can be compared")
    wanted = sorted(set(run.labels_of) if image_ids is None else set(image_ids))
    folder = run.score_folder(PURPOSE, draws)
    groups = {image.image_id: image.group for image in run.dataset}
    shards = list(_shards(run, wanted))
    stage_key = key_of([folder.name, level, run.dataset.labels, [ids for _, ids in shards]])
    parts: dict[str, np.ndarray] = {}
    with run.directory.stage("audit labels", stage_key) as entry:
        entry |= {"images": len(wanted), "draws": draws}
        progress.start("score all labels", len(wanted))
        measures: list[Scorer] = []
        measures_of = -1
        for fold, ids in shards:
            path = _shard_path(run, folder, ids, level)
            if not path.exists():
                if fold != measures_of:
                    measures, measures_of = _scorers(run, fold, rounds), fold
                denoiser = run.denoiser_of(fold)
                before = denoiser.evaluations
                write_arrays(path, {"units": _score_shard(run, measures, ids, level)})
                done = denoiser.evaluations - before
                entry["unet_evaluations"] = entry.get("unet_evaluations", 0) + done
            for image_id, units in zip(ids, load_file(path)["units"], strict=True):
                parts[image_id] = units
            progress.advance(len(ids))
        progress.finish()
    return LabelScores(
        image_ids=tuple(wanted),
        groups=tuple(groups[i] for i in wanted),
        labels=run.dataset.labels,
        given=np.array([[label in run.labels_of[i] for label in run.dataset.labels] for i in wanted]),
        units=np.stack([parts[i] for i in wanted]),
        rounds=tuple(r // 2 for r in rounds),
        held_out=np.array([i in run.held_out for i in wanted]),
    )


def _shards(run: Run, image_ids: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield fold and images, fold by fold: one model in memory, one latent shape a shard."""
    by_kind: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for image_id in image_ids:
        view = run.latents.view(image_id)
        by_kind[run.fold_of(image_id), view.height, view.width].append(image_id)
    for (fold, _, _), ids in sorted(by_kind.items()):
        for start in range(0, len(ids), SHARD_IMAGES):
            yield fold, ids[start : start + SHARD_IMAGES]


def _shard_path(run: Run, folder: Path, ids: Sequence[str], level: float) -> Path:
    key = key_of([run.dataset.labels, level, [[i, *run.labels_of[i]] for i in ids]])
    return folder / f"{key}.safetensors"


def _score_shard(run: Run, measures: Sequence[Scorer], ids: Sequence[str], level: float) -> np.ndarray:
    """(n, K, u) float32 of the images of one shard; see `LabelScores.units`."""
    labels = run.dataset.labels
    position = {label: i for i, label in enumerate(labels)}
    given = np.array([[label in run.labels_of[i] for label in labels] for i in ids])
    alive = np.ones_like(given)
    rounds = [measure.plan.units for measure in measures]
    units = np.full((len(ids), len(labels), sum(rounds)), np.nan, dtype=np.float32)
    start = 0
    for number, measure in enumerate(measures):
        end = start + measure.plan.units
        by_count: dict[int, list[int]] = defaultdict(list)
        for i, row in enumerate(alive):
            by_count[int(row.sum())].append(i)
        for count, rows in sorted(by_count.items()):
            size = measure.images_at_once(count)
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                jobs = [Job(ids[i], tuple(label for label in labels if alive[i, position[label]])) for i in part]
                differences = measure.unit_maps(jobs).differences
                for i, values in zip(part, differences.mean((-2, -1)).numpy(), strict=True):
                    units[i, alive[i], start:end] = values
        start = end
        alive &= ~ruled_out(units[:, :, :end], given, rounds[: number + 1], level)
    return units


def _scorers(run: Run, fold: int, rounds: Sequence[int]) -> list[Scorer]:
    """A scorer a round, of independent noise, by the model that has not seen the images of the fold."""
    measures = []
    for number, draws in enumerate(rounds):
        plan = replace(run.plan(draws), units=draws // 2, antithetic=True, stratified=True)
        measures.append(replace(scorer(run, f"{PURPOSE} {number}", draws, fold), plan=plan))
    return measures


# --------------------------------------------------------------------------------------------- statistics


def ruled_out(units: np.ndarray, given: np.ndarray, rounds: Sequence[int], level: float = PRUNE_LEVEL) -> np.ndarray:
    """Which labels do worse than the best one of their image, by a paired one-sided t-test on shared draws.

    Parameters
    ----------
    units : (n, K, u) scores a pair of draws, NaN from the round on in which a label was ruled out
    given : (n, K) bool, labels that stay in any case; so does the best of the others
    rounds : pairs in each round
    level : of the test, over the number of labels

    Returns
    -------
    (n, K) bool, those that were ruled out before included
    """
    values = units.astype(np.float64)
    gone = np.isnan(values).any(2)
    complete = np.where(gone, -np.inf, values.mean(2))
    best = complete.argmax(1)
    rival = np.where(given, -np.inf, complete).argmax(1)
    behind = values[np.arange(len(values)), best][:, None] - values  # (n, K, u)
    variance, freedom = _variance(behind, rounds)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = behind.mean(2) / np.sqrt(variance)
    p_value = student.sf(np.nan_to_num(statistic, nan=0.0), freedom)
    worse = (p_value < level / max(1, units.shape[1] - 1)) & ~given
    kept = np.arange(units.shape[1]) == rival[:, None]
    return gone | (worse & ~kept)


def _variance(differences: np.ndarray, rounds: Sequence[int]) -> tuple[np.ndarray, float]:
    """Variance (n, K) of the mean of paired differences (n, K, u), and its degrees of freedom.

    Within a round the timesteps are stratified, so the spread is taken from successive differences (Wolter 2007); a
    few pairs say little about it, so it is shrunk towards the average over the labels of the image.
    """
    known = np.isfinite(differences)
    count = known.sum(2)
    squares, pairs, start = np.zeros(count.shape), np.zeros(count.shape), 0
    for size in rounds:
        steps = np.diff(differences[:, :, start : start + size], axis=2)
        seen = np.isfinite(steps)
        squares += np.where(seen, steps, 0).__pow__(2).sum(2) / 2
        pairs += seen.sum(2)
        start += size
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(pairs > 0, squares / pairs, 0)
    real = (pairs > 0) & (own > 0)  # the reference itself has no difference to itself
    pooled = np.where(real, own, 0).sum(1, keepdims=True) / np.maximum(real.sum(1, keepdims=True), 1)
    freedom = float(sum(size - 1 for size in rounds))
    moderated = (PRIOR_UNITS * pooled + pairs * own) / (PRIOR_UNITS + pairs)
    return np.where(own > 0, moderated, 0) / np.maximum(count, 1), PRIOR_UNITS + freedom


@dataclass(frozen=True)
class Calibration:
    """temperature in the scores' unit, noise rate in [0, 0.5], weight of the probe in [0, 4]."""

    temperature: float
    noise_rate: float
    probe_weight: float


def fit_temperature(scores: np.ndarray, given: np.ndarray, probe: np.ndarray | None = None) -> Calibration:
    """Fit temperature, noise rate and the probe's weight by maximum likelihood of the given labels.

        p(given) = (1 - noise) * sum over the given of softmax(scores / temperature + weight * probe)
                   + noise * share of the given

    Parameters
    ----------
    scores : (n, K)
    given : (n, K) bool
    probe : (n, K) log probabilities of a classifier that has not seen the image; None: losses alone

    A temperature far above the scores' spread means that the losses say nothing about the labels.
    """
    centred = scores - scores.mean(1, keepdims=True)
    scale = float(np.sqrt(np.mean(centred**2))) or 1.0
    share = given.mean(1)
    beside = np.zeros_like(centred) if probe is None else probe

    def loss(x: np.ndarray) -> float:
        noise = 0.5 * expit(x[1])
        p = np.where(given, softmax(centred / scale * np.exp(-x[0]) + x[2] * beside, axis=1), 0).sum(1)
        return float(-np.log((1 - noise) * p + noise * share).mean()) + 1e-6 * float(np.sum(x**2))

    bounds = [(-6.0, 6.0), (-8.0, 8.0), (0.0, 0.0 if probe is None else 4.0)]
    weights = (0.0,) if probe is None else (0.2, 1.0)
    starts = [np.array([a, b, c]) for a in (-2.0, 0.0, 3.0) for b in (-4.0, 0.0) for c in weights]
    best = min((minimize(loss, x, method="L-BFGS-B", bounds=bounds) for x in starts), key=lambda found: found.fun)
    return Calibration(float(scale * np.exp(best.x[0])), float(0.5 * expit(best.x[1])), float(best.x[2]))


def label_error_score(scores: LabelScores, probe: np.ndarray | None = None) -> LabelErrors:
    """How likely the given label of each image is wrong; calibrated on the images held out, if any.

    Parameters
    ----------
    probe : (n, K) log probabilities from `probe.label_probe`, in the order of `scores`; None: losses alone
    """
    mean = scores.mean
    rows = scores.held_out if scores.held_out.any() else np.ones(len(mean), dtype=bool)
    fitted = fit_temperature(mean[rows], scores.given[rows], None if probe is None else probe[rows])
    temperature, noise = fitted.temperature, fitted.noise_rate
    beside = 0.0 if probe is None else fitted.probe_weight * probe
    logits = log_softmax(mean / temperature + beside, axis=1)
    with np.errstate(divide="ignore"):
        others = logsumexp(np.where(scores.given, -np.inf, logits), axis=1)
        own = logsumexp(np.where(scores.given, logits, -np.inf), axis=1)
    score = np.where(scores.given.all(1), -np.inf, others - own)
    error = _score_error(scores, logits, temperature)
    probability = wrong_probability(score, scores.given, noise)
    lower = wrong_probability(score - SURE * error, scores.given, noise)
    p = np.exp(logits)
    likeliest = p.argmax(1)
    contradicts = ~scores.given[np.arange(len(p)), likeliest]
    reported = contradicts & (probability >= LIKELY_WRONG) & (lower > 0.5)
    return LabelErrors(score, error, probability, p, likeliest, reported, temperature, noise, fitted.probe_weight)


def wrong_probability(score: np.ndarray, given: np.ndarray, noise: float) -> np.ndarray:
    """P(no given label is right | image, given label): Bayes' rule with a label that is random in a share `noise`.

    With P = expit(-score) the probability of the given labels and s their share of all labels, the right label is
    given with (1 - noise) + noise * s, any other with noise * s.
    """
    right = expit(-score)
    share = given.mean(1)
    given_right = right * ((1 - noise) + noise * share)
    return 1 - given_right / np.maximum(given_right + (1 - right) * noise * share, 1e-300)


def _score_error(scores: LabelScores, logits: np.ndarray, temperature: float) -> np.ndarray:
    """Standard error (n,) of the log odds by the delta method, from draws in which the weighty labels took part."""
    weight = np.where(scores.given, -1.0, 1.0)
    inside = np.where(scores.given, logits, -np.inf)
    outside = np.where(scores.given, -np.inf, logits)
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(softmax(inside, axis=1)) + np.nan_to_num(softmax(outside, axis=1))
    units = scores.units.astype(np.float64)
    seen = np.isfinite(units)
    effective = np.where(seen, (weight * share)[:, :, None], 0)
    # a label that was ruled out has hardly any weight; each side is scaled to what is left of it
    for side in (scores.given, ~scores.given):
        total = np.where(side[:, :, None], np.abs(effective), 0).sum(1, keepdims=True)
        effective = np.where(side[:, :, None], effective / np.maximum(total, 1e-12), effective)
    influence = (effective * np.where(seen, units, 0)).sum(1)[:, None] / temperature
    plain, _ = _variance(influence, scores.rounds)
    return np.sqrt(plain[:, 0])


def confusable_pairs(scores: LabelScores) -> list[ConfusablePair]:
    """Pairs of labels, the most confusable first: how often an image of one fits the other better.

    Each direction is a mean over images that carry one label and not the other; the two are averaged. Errors count
    groups and not images.
    """
    mean, found = scores.mean, []
    _, group = np.unique(np.array(scores.groups, dtype=object).astype(str), return_inverse=True)
    for a in range(len(scores.labels)):
        for b in range(a + 1, len(scores.labels)):
            rates, variances = [], []
            for own, other in ((a, b), (b, a)):
                rows = scores.given[:, own] & ~scores.given[:, other]
                if not rows.any():
                    break
                margin = mean[rows, other] - mean[rows, own]
                wrong = (margin > 0) + 0.5 * (margin == 0)
                rate = wrong.mean()
                sums = np.bincount(group[rows], wrong - rate)
                # one image more on either side: a rate of 0 out of 5 is not certain
                variances.append(float((sums**2).sum() + 0.25) / rows.sum() ** 2)
                rates.append(float(rate))
            if len(rates) == 2:
                names = (scores.labels[a], scores.labels[b])
                found.append(ConfusablePair(names, float(np.mean(rates)), float(np.sqrt(sum(variances)) / 2)))
    return sorted(found, key=lambda pair: (-pair.confusion, pair.labels))


def chance_p_values(scores: LabelScores) -> np.ndarray:
    """(K,) one-sided p-values that the model tells each label: do its images score higher under it than others do?

    The score is the label's own minus the mean over labels, averaged over a group's images with the label, and those
    without it. Groups that have both are compared within themselves, by Wilcoxon's signed-rank test; the others, with
    and without the label, by his rank-sum test. The two z (normal approximation, tie correction) rest on different
    groups. They are added with the weights sqrt(n / 2), for n groups with both, and sqrt(n m / (n + m)), which is what
    differences of means are worth (Stouffer's method).

    NaN where there is no contrast, and where there are so few groups that no scores could reach REPORTED.
    """
    margin = scores.mean - scores.mean.mean(1, keepdims=True)
    member = np.unique(np.array(scores.groups, dtype=object).astype(str), return_inverse=True)[1]
    result = np.full(len(scores.labels), np.nan)
    for k in range(len(scores.labels)):
        carries = scores.given[:, k]
        counts = np.stack([np.bincount(member[rows], minlength=member.max() + 1) for rows in (carries, ~carries)])
        sums = np.stack(
            [np.bincount(member[rows], margin[rows, k], minlength=member.max() + 1) for rows in (carries, ~carries)]
        )
        with_label, without = sums / np.maximum(counts, 1)
        both = (counts > 0).all(0)
        own, other = with_label[(counts[0] > 0) & ~both], without[(counts[1] > 0) & ~both]
        parts = []
        if both.any():
            furthest = _signed_rank(1.0 + np.arange(both.sum()))
            parts.append((both.sum() / 2, _signed_rank(with_label[both] - without[both]), furthest))
        if n := len(own) * len(other):
            furthest = _rank_sum(len(other) + np.arange(len(own)), np.arange(len(other)))
            parts.append((n / (len(own) + len(other)), _rank_sum(own, other), furthest))
        if parts:
            weights, *z = np.array(parts).T
            p_value, smallest = norm.sf(np.array(z) @ np.sqrt(weights) / np.sqrt(weights.sum()))
            result[k] = p_value if smallest <= REPORTED else np.nan
    return result


def unjudged_labels(scores: LabelScores) -> list[str]:
    """Labels of some of the images that cannot be told from chance whatever their scores; see `chance_p_values`."""
    unknown = scores.given.any(0) & np.isnan(chance_p_values(scores))
    return [label for label, it in zip(scores.labels, unknown, strict=True) if it]


def _rank_sum(higher: np.ndarray, lower: np.ndarray) -> float:
    """z of the Mann-Whitney statistic (n,) against (m,), corrected for continuity; 0 where all are equal."""
    n, m = len(higher), len(lower)
    ranks = rankdata(np.concatenate([higher, lower]))
    total = n + m
    variance = n * m / 12 * (total + 1 - _ties(ranks) / max(1, total * (total - 1)))
    excess = ranks[:n].sum() - n * (n + 1) / 2 - n * m / 2
    return float((excess - 0.5) / np.sqrt(variance)) if variance > 0 else 0.0


def _signed_rank(differences: np.ndarray) -> float:
    """z of the sum of the ranks (n,) of differences above 0, corrected for continuity; 0 where all are 0.

    Differences of 0 are left out.
    """
    differences = differences[differences != 0]
    n = len(differences)
    ranks = rankdata(np.abs(differences))
    variance = n * (n + 1) * (2 * n + 1) / 24 - _ties(ranks) / 48
    excess = ranks[differences > 0].sum() - n * (n + 1) / 4
    return float((excess - 0.5) / np.sqrt(variance)) if variance > 0 else 0.0


def _ties(ranks: np.ndarray) -> float:
    """Sum of t^3 - t over the sets of t equal ranks."""
    _, ties = np.unique(ranks, return_counts=True)
    return float((ties**3 - ties).sum())


def write_label_scores(path: Path, scores: LabelScores, errors: LabelErrors, file_names: Sequence[str]) -> None:
    """Write `labels.parquet`: a row an image, with the given and the likeliest label, score, error and ranking."""
    order = np.argsort(-errors.p, axis=1, kind="stable")
    top = order[:, : min(5, order.shape[1])]
    names = np.array(scores.labels, dtype=object)
    columns = {
        "image_id": list(scores.image_ids),
        "file_name": list(file_names),
        "given": [list(names[row]) for row in scores.given],
        "likeliest": list(names[errors.likeliest]),
        "score": errors.score.astype(np.float32),
        "standard_error": errors.standard_error.astype(np.float32),
        "probability_wrong": errors.probability.astype(np.float32),
        "reported": errors.reported,
        "held_out": scores.held_out,
        "ranking": [list(names[row]) for row in top],
        "probabilities": [[float(v) for v in errors.p[i, row]] for i, row in enumerate(top)],
    }
    ordered = pa.table(columns).sort_by([("score", "descending"), ("image_id", "ascending")])
    write_table(path, ordered)
