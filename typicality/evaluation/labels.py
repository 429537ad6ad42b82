"""Label errors that were put in on purpose: how well they are found, beside confident learning on the same folds.

A share of the images gets another label. A model is fine-tuned on these labels, fold by fold, every image is scored
under all labels by the model that has not seen it, and the images are ranked by the label-error score of `audit`, which
joins these losses with a classifier on the base's frozen features. The rival is confident learning (Northcutt et al.,
JAIR 2021; the package cleanlab) on that classifier alone, with the same labels and the same folds. Which images were
flipped is known to neither.

Images whose label nothing can show are left out beforehand: those with several labels, and those that look (nearly)
the same as an image of another label in their own group, such as an object whose design did not change.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from typicality import plan
from typicality.applications.audit.labels import label_error_score, label_scores
from typicality.applications.audit.probe import LEAST, out_of_fold, probe_folds, run_features
from typicality.checks import check_settings
from typicality.config import Settings, key_of
from typicality.dataset import LabelledImages, load_dataset
from typicality.dataset.split import unit_hash
from typicality.errors import InputError, InterruptedRun
from typicality.evaluation.coverage import NORMAL_90, group_weights
from typicality.metrics import average_precision
from typicality.paths import default_folder
from typicality.pipeline import ensure_latents, ensure_model
from typicality.progress import SILENT, Progress
from typicality.run import Run, open_run

How = Literal["uniform", "confusable"]
TWO_FOLDS: Mapping[str, Any] = {"finetune": {"folds": 2}}
"""What benchmarks on held-out images take unless they are told a number of folds, be it 1."""
COMPARED = 64
"""Side in pixels at which images are compared."""
RESAMPLES = 200
METHODS = {
    "self_confidence": ("self_confidence", False),
    "self_confidence, adjusted": ("self_confidence", True),
    "normalized_margin": ("normalized_margin", False),
    "normalized_margin, adjusted": ("normalized_margin", True),
    "confidence_weighted_entropy": ("confidence_weighted_entropy", False),
}
"""cleanlab's scores: method, and whether probabilities are adjusted by the labels' thresholds. Its default first."""


@dataclass(frozen=True)
class LabelBenchmark:
    """How well flipped labels were found.

    Attributes
    ----------
    auroc, average_precision, precision_at_flips : of our label-error score; chance is 0.5, `flip` and `flip`
    auroc_interval : 90%, by a bootstrap over groups
    confident_learning : the same measures of cleanlab's default score, and of its other scores
    difference : our AUROC minus confident learning's, with its 90% interval over the same bootstrap samples
    variants : other scores; `losses`: ours without the classifier on frozen features; `margin`: best other label minus
        the given one; `calibrated`:
        logistic regression on the losses under all labels, out of fold; `combined`: mean of the log odds of
        `calibrated` and of the rival's classifier
    new_groups : the same measures, where there are flips, on the groups that the one fixed split holds out: the bundled
        base was pretrained on the images of the others (never on years or continents), which could favour ours
    accuracy : share of images with an unflipped label whose best label is the given one
    temperature, noise_rate, probe_weight : fitted from the scores and the given labels alone, see `audit`
    n, flips, excluded : images, flipped ones, and how many were left out and why
    """

    dataset: str
    label: str
    auroc: float
    average_precision: float
    precision_at_flips: float
    auroc_interval: tuple[float, float]
    confident_learning: dict[str, Any]
    difference: dict[str, float]
    variants: dict[str, dict[str, float]]
    new_groups: dict[str, Any]
    accuracy: float
    temperature: float
    noise_rate: float
    probe_weight: float
    n: int
    flips: int
    excluded: dict[str, int]
    folds: int
    flip: float
    how: str
    draws: int
    steps: int | None
    seed: int
    unet_evaluations: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def labels(
    settings: Settings,
    out: Path | None = None,
    *,
    flip: float = 0.1,
    how: How = "uniform",
    draws: int = 16,
    exclude: float | None = 2.0,
    picture: Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> LabelBenchmark:
    """Flip labels, look for them, and compare with confident learning.

    Parameters
    ----------
    settings : `finetune.folds` should be 2 at least; with 1 the model has seen what it judges
    out : run directory of the flipped data set; reports/<data set>-<label>-labels by default
    flip : share of the images whose label is changed
    how : to any other label alike, or to the one that a classifier on frozen features takes it for most often
    draws : UNet draws an image and label; even, 4 at least
    exclude : mean absolute difference of pixels (0 to 255) up to which images of a group count as the same; None
        leaves nothing out
    picture : PNG of both ROC curves

    Raises
    ------
    InputError : an impossible share, too few images, or cleanlab is not installed.
    """
    started = time.monotonic()
    _check(flip, how, draws)
    _need_cleanlab()
    clean, excluded = usable(load_dataset(settings.dataset), exclude)
    folder = out or folder_of(clean)
    clean = replace(clean, name=f"{clean.name}-flipped")  # so that no other command takes this run for the real one
    run = open_run(settings, folder, fresh, progress, clean)
    truth = np.array([clean.labels.index(image.labels[0]) for image in clean])
    groups = [image.group for image in clean]
    count = len(clean.labels)
    try:
        with run.directory.lock():
            check_settings(run)
            run.begin()
            ensure_latents(run)
            features = run_features(run)
            folds = probe_folds(run)
            partners = None
            if how == "confusable":
                partners = confused_with(out_of_fold(features, truth, folds, groups, count, settings.seed), truth)
            given = flipped_labels([i.image_id for i in clean], truth, count, flip, settings.seed, partners)
            run = Run(settings, relabelled(clean, given), run.directory, progress)
            run.directory.record["dataset"]["fingerprint"] = run.dataset.fingerprint
            run.directory.record["benchmark"] = {"name": "labels", "flip": flip, "how": how}
            ensure_model(run)
            scores = label_scores(run, draws, progress=progress)
    except KeyboardInterrupt as stop:
        raise InterruptedRun(f"stopped; what is finished stays in {folder}, and the same command continues") from stop
    rows = {image_id: i for i, image_id in enumerate(scores.image_ids)}
    order = np.array([rows[image.image_id] for image in clean])
    means = scores.mean[order]
    probabilities = out_of_fold(features, given, folds, groups, count, settings.seed)
    probe = np.empty_like(probabilities)
    probe[order] = np.log(np.maximum(probabilities, LEAST))
    errors = label_error_score(scores, probe)
    alone = {"losses": label_error_score(scores).score[order]}
    found = {"ours": errors.score[order]} | alone | variants(means, given, groups, probabilities, settings.seed)
    rival = confident_learning(given, probabilities)
    flipped = given != truth
    new = np.isin([i.image_id for i in clean], [i.image_id for i in clean.held_out()[1]])
    first = next(iter(METHODS))
    weights = group_weights(groups, np.random.default_rng(settings.seed), RESAMPLES)
    ours_resampled = resampled_auroc(found["ours"], flipped, weights)
    rival_resampled = resampled_auroc(rival[first], flipped, weights)
    measured = measures(found["ours"], flipped)
    rival_measured = {name: measures(score, flipped) for name, score in rival.items()}
    if picture is not None:
        draw_roc({"typicality": found["ours"], "confident learning": rival[first]}, flipped, picture)
    difference = measured["auroc"] - rival_measured[first]["auroc"]
    stage = run.directory.record["stages"]
    return LabelBenchmark(
        dataset=clean.name.removesuffix("-flipped"),
        label=clean.label,
        **measured,
        auroc_interval=_around(measured["auroc"], ours_resampled),
        confident_learning={
            **rival_measured[first],
            "auroc_interval": _around(rival_measured[first]["auroc"], rival_resampled),
            "scores": rival_measured,
            "issues": issues_found(given, probabilities, flipped),
        },
        difference=dict(
            zip(
                ("auroc", "low", "high"),
                (round(difference, 4), *_around(difference, ours_resampled - rival_resampled)),
                strict=True,
            )
        ),
        variants={name: measures(score, flipped) for name, score in found.items() if name != "ours"},
        new_groups={
            "n": int(new.sum()), "flips": int((new & flipped).sum()), **measures(found["ours"][new], flipped[new]),
            "confident_learning": measures(rival[first][new], flipped[new]),
        },
        accuracy=round(float((means.argmax(1) == given)[~flipped].mean()), 4),
        temperature=errors.temperature,
        noise_rate=round(errors.noise_rate, 4),
        probe_weight=round(errors.probe_weight, 3),
        n=len(clean), flips=int(flipped.sum()), excluded=excluded, folds=run.folds, flip=flip, how=how, draws=draws,
        steps=stage.get("finetune", {}).get("steps"), seed=settings.seed,
        unet_evaluations=stage.get("audit labels", {}).get("unet_evaluations", 0),
        seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip


def _check(flip: float, how: str, draws: int) -> None:
    if not 0 < flip < 0.5:
        raise InputError(f"--flip must be above 0 and below 0.5, not {flip}: most labels have to be right")
    if draws < 4 or draws % 2:
        raise InputError(f"--draws must be even and at least 4, not {draws}")
    if how not in get_args(How):
        raise InputError(f"--how is {' or '.join(get_args(How))}, not {how!r}")


def folder_of(dataset: LabelledImages) -> Path:
    """Return where the run of a data set with flipped labels goes by default."""
    of_run = default_folder(dataset)
    return of_run.with_name(f"{of_run.name}-labels")


def plan_of(settings: Settings, dataset: LabelledImages, *, flip: float, how: How, draws: int) -> dict[str, Any]:
    """Return what `labels` would do, for `--dry-run`: no image is read, so that none is left out yet.

    Raises
    ------
    InputError : for numbers that `labels` refuses.
    """
    _check(flip, how, draws)
    return {
        **plan.plan_of(settings, dataset, scoring=False),
        "labels to flip": f"{max(1, round(flip * len(dataset)))}, {how}",
        "draws an image and label": draws,
        "UNet evaluations of the scores at most": len(dataset) * draws * (1 + len(dataset.labels)),
    }


# ------------------------------------------------------------------------------------------ images and flips


def usable(dataset: LabelledImages, exclude: float | None) -> tuple[LabelledImages, dict[str, int]]:
    """Leave out the images whose label nothing can show; say how many for each reason.

    Raises
    ------
    InputError : where fewer than two labels are left.
    """
    several = {image.image_id for image in dataset if len(image.labels) > 1}
    alike = near_identical(dataset, exclude) - several if exclude is not None else set()
    images = tuple(i for i in dataset if i.image_id not in several and i.image_id not in alike)
    names = {image.labels[0] for image in images}
    if len(names) < 2:
        raise InputError(
            f"only {len(images)} images with {len(names)} label(s) are left to flip: use another label, or a smaller "
            "--exclude-near-identical"
        )
    kept = replace(dataset, images=images, labels=tuple(name for name in dataset.labels if name in names))
    return _with_fingerprint(kept), {"several labels": len(several), "near-identical": len(alike)}


def near_identical(dataset: LabelledImages, distance: float) -> set[str]:
    """Ids of the images that look the same as one of another label in their group; both sides of such a pair.

    Parameters
    ----------
    distance : mean absolute difference over pixels and channels, 0 to 255, at COMPARED x COMPARED pixels
    """
    members: defaultdict[str, list[Any]] = defaultdict(list)
    for image in dataset:
        members[image.group].append(image)
    found: set[str] = set()
    for images in members.values():
        if len({image.labels for image in images}) < 2:
            continue
        size = (COMPARED, COMPARED)
        pixels = np.stack(
            [
                np.asarray(dataset.open(i).resize(size, Image.Resampling.BILINEAR), dtype=np.int16).ravel()
                for i in images
            ]
        )
        for i, image in enumerate(images):
            near = np.abs(pixels[i + 1 :] - pixels[i]).mean(1) <= distance
            for j in np.flatnonzero(near) + i + 1:
                if images[j].labels != image.labels:
                    found |= {image.image_id, images[j].image_id}
    return found


def flipped_labels(
    image_ids: Sequence[str],
    truth: np.ndarray,
    n_labels: int,
    share: float,
    seed: int,
    partners: np.ndarray | None = None,
) -> np.ndarray:
    """Give round(share * n) images another label; which ones and to what depends on their content and the seed alone.

    Parameters
    ----------
    truth : (n,) integers below n_labels
    partners : (n_labels,) the label that each label is flipped to; any other one, alike, by default
    """
    given = truth.copy()
    ranked = sorted(range(len(truth)), key=lambda i: unit_hash(image_ids[i], f"flip:{seed}"))
    for i in ranked[: max(1, round(share * len(truth)))]:
        if partners is not None:
            given[i] = partners[truth[i]]
        else:
            step = 1 + int(unit_hash(image_ids[i], f"flip to:{seed}") * (n_labels - 1))
            given[i] = (truth[i] + step) % n_labels
    return given


def confused_with(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(K,) the label that each label is taken for most often: the largest mean probability among the others."""
    count = probabilities.shape[1]
    means = np.stack([probabilities[truth == label].mean(0) for label in range(count)])
    np.fill_diagonal(means, -1.0)
    return means.argmax(1)


def relabelled(dataset: LabelledImages, given: np.ndarray) -> LabelledImages:
    """The same images with one given label each; the fingerprint follows, so that nothing is reused in error."""
    images = tuple(
        replace(image, labels=(dataset.labels[label],)) for image, label in zip(dataset, given.tolist(), strict=True)
    )
    return _with_fingerprint(replace(dataset, images=images))


def _with_fingerprint(dataset: LabelledImages) -> LabelledImages:
    return replace(dataset, fingerprint=key_of([[image.image_id, *image.labels] for image in dataset]))


# ---------------------------------------------------------------------------------------- scores and measures


def variants(
    means: np.ndarray, given: np.ndarray, groups: Sequence[str], rival: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Other label-error scores from the same losses, see `LabelBenchmark`.

    Parameters
    ----------
    means : (n, K) mean typicality under every label
    rival : (n, K) probabilities of the rival's classifier, for `combined`
    """
    n = len(given)
    own = means[np.arange(n), given]
    others = means.copy()
    others[np.arange(n), given] = -np.inf
    centred = means - means.mean(1, keepdims=True)
    names = sorted(set(groups))
    folds = np.array([int(unit_hash(group, f"calibrate:{seed}") * min(5, len(names))) for group in groups])
    if len(np.unique(folds)) < 2:  # a handful of groups may share one
        folds = np.searchsorted(names, np.asarray(groups)) % 2
    spread = np.linalg.norm(centred, axis=1, keepdims=True)
    columns = np.concatenate([centred, centred / np.maximum(spread, 1e-12)], axis=1)
    calibrated = log_odds(out_of_fold(columns, given, folds, groups, means.shape[1], seed), given)
    return {
        "margin": others.max(1) - own,
        "calibrated": calibrated,
        "combined": (calibrated + log_odds(rival, given)) / 2,
    }


def log_odds(probabilities: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(n,) log odds that the given label is wrong; probabilities are kept 1e-6 from 0 and 1."""
    right = np.clip(probabilities[np.arange(len(given)), given], 1e-6, 1 - 1e-6)
    return np.log1p(-right) - np.log(right)


def _need_cleanlab() -> Any:
    try:
        import cleanlab
        import cleanlab.filter
        import cleanlab.rank
    except ImportError as error:
        raise InputError(
            "the rival of this benchmark needs the package cleanlab: pip install 'typicality[evidence]'"
        ) from error
    return cleanlab


def confident_learning(given: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """cleanlab's label-error scores (n,), higher for likelier errors: 1 minus its label quality, by METHODS."""
    rank = _need_cleanlab().rank
    return {
        name: 1 - rank.get_label_quality_scores(given, probabilities, method=method, adjust_pred_probs=adjust)
        for name, (method, adjust) in METHODS.items()
    }


def issues_found(given: np.ndarray, probabilities: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    """What cleanlab reports as label issues by its default rule: how many, their precision and recall."""
    issues = _need_cleanlab().filter.find_label_issues(given, probabilities, n_jobs=1)
    hits = int((issues & flipped).sum())
    return {
        "n": int(issues.sum()),
        "precision": round(hits / max(1, int(issues.sum())), 4),
        "recall": round(hits / max(1, int(flipped.sum())), 4),
    }


def measures(score: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    """AUROC, average precision, and precision among as many images as were flipped; {} where all are of one kind."""
    ranks = rankdata(score)  # -inf and ties are as good as any other value
    n = int(flipped.sum())
    if n in (0, len(flipped)):
        return {}
    above = ranks > (cut := np.sort(ranks)[-n])
    tied = ranks == cut
    hits = flipped[above].sum() + (n - above.sum()) * flipped[tied].mean()  # its expectation among ties
    return {
        "auroc": round(float(roc_auc_score(flipped, ranks)), 4),
        "average_precision": round(average_precision(ranks, flipped), 4),
        "precision_at_flips": round(float(hits / n), 4),
    }


def resampled_auroc(score: np.ndarray, flipped: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC (times,) on each bootstrap sample of `weights` (times, n); 0.5 where a sample has one kind only."""
    ranks = rankdata(score)
    both = [(w[flipped].sum() > 0) and (w[~flipped].sum() > 0) for w in weights]
    return np.array(
        [roc_auc_score(flipped, ranks, sample_weight=w) if ok else 0.5 for w, ok in zip(weights, both, strict=True)]
    )


def _around(value: float, resampled: np.ndarray) -> tuple[float, float]:
    half = NORMAL_90 * float(resampled.std(ddof=1))
    return round(value - half, 4), round(value + half, 4)


def draw_roc(scores: Mapping[str, np.ndarray], flipped: np.ndarray, path: Path) -> None:
    """PNG with the ROC curve of each score and the diagonal of chance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    from typicality.store import write_whole

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="chance")
    for name, score in scores.items():
        ranks = rankdata(score)
        false, true, _ = roc_curve(flipped, ranks)
        axes.plot(false, true, label=f"{name}, AUROC {roc_auc_score(flipped, ranks):.3f}")
    axes.set(xlabel="right labels reported", ylabel="flipped labels found", aspect="equal")
    axes.legend(loc="lower right", frameon=False)
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=120))
