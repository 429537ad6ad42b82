"""Do synthetic images help? Small classifiers of few real images, with and without them, on images nobody has seen.

Fixed before any result was seen, but for the amount of noise (less) and the normalisation of the networks (of a picture
and no longer of a batch), which were changed after a first try of one seed:

- every classifier has `per_label` real training images a label, and is judged on the data set's fixed held-out groups,
  which neither it nor the diffusion model has seen;
- rows: `real` alone; `classical` augmentation (shifts, noise, and mirroring where the run was fine-tuned with it);
  `variants`, each replacing its real image with probability 0.5; `classical+variants`. Two learners: a compact CNN and
  a logistic regression on fixed features;
- `contrastive` and `contrastive+negatives`: supervised contrastive learning (Khosla et al. 2020) with classical
  augmentation, without and with near-miss negatives in the denominator, then a logistic regression on its features;
- the area under the ROC curve says how well held-out images are told from those of another data set: by the highest
  probability (CNN), or by the cosine to the nearest training image (contrastive);
- `seeds` repeats have other training images, weights and draws, the same for all rows, so that differences are paired.

**What it cannot say**: the model that makes the variants was fine-tuned on many more labelled images than the
classifiers get (`generator_images`). A gain says that it hands on what it learned there, and not that few images were
enough for it; for that, fine-tune a run on the few images alone and evaluate it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from typicality.applications.augment.options import AugmentOptions, evaluations_of
from typicality.applications.augment.run import (
    judged,
    make_shards,
    read_shard,
    shards_folder,
    training_images,
    unit_of,
)
from typicality.config import Settings
from typicality.dataset import LabelledImages, load_dataset, prepare
from typicality.dataset.split import unit_hash
from typicality.errors import DatasetError, InputError, InterruptedRun
from typicality.evaluation.classify import held_out_images
from typicality.evaluation.fewshot import (
    Draw,
    Few,
    applied,
    fixed_features,
    nearest_similarity,
    train_cnn,
    train_contrastive,
    train_linear,
)
from typicality.metrics import clustered_error
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.rescoring import rival_labels
from typicality.run import Run, open_finished, resolve_settings

BASELINE = "classical"
ROWS: Mapping[str, tuple[bool, bool]] = {
    "real": (False, False), "classical": (True, False), "variants": (False, True), "classical+variants": (True, True),
}  # fmt: skip
"""Row -> whether it has classical augmentation, and variants."""
CONTRASTIVE = ("contrastive", "contrastive+negatives")
OOD_IMAGES = 300
DEFAULT_OPTIONS = AugmentOptions(per_image=2)


@dataclass(frozen=True)
class AugmentBenchmark:
    """Whether a run's synthetic images help; see the module for the rows.

    Attributes
    ----------
    accuracy : of the CNN with classical augmentation and variants
    gain, gain_error : its accuracy less that with classical augmentation alone, paired, and the standard error
    auroc_gain, auroc_gain_error : of negatives, over contrastive learning without them; None where not measured
    accuracy_gain_negatives, accuracy_gain_negatives_error : likewise, of accuracy
    rows : learner, name, accuracy, standard error (over held-out groups and seeds), difference to the learner's
        baseline and its error, the same over real images alone, AUROC and its error over seeds
    made, kept : synthetic images of each kind, and the share of them that is kept
    generator_images : labelled images that the diffusion model was fine-tuned on
    """

    accuracy: float
    gain: float
    gain_error: float
    accuracy_gain_negatives: float | None
    accuracy_gain_negatives_error: float | None
    auroc_gain: float | None
    auroc_gain_error: float | None
    n: int
    chance: float
    per_label: int
    seeds: int
    train_steps: int
    made: dict[str, int]
    kept: dict[str, float]
    generator_images: int
    ood: str | None
    n_ood: int
    labels: tuple[str, ...]
    options: dict[str, Any]
    rows: list[dict[str, Any]]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """What one row came to: hits (seeds, n) on held-out images, and the AUROC of every seed, NaN where not measured."""

    hits: np.ndarray
    auroc: np.ndarray


def evaluate_augment(
    folder: Path,
    options: AugmentOptions = DEFAULT_OPTIONS,
    *,
    per_label: int = 20,
    seeds: int = 3,
    train_steps: int = 200,
    negatives: bool = True,
    ood: str = "flags",
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> AugmentBenchmark:
    """Measure on held-out images whether synthetic images help small classifiers of few real ones.

    Synthetic images go to the run directory, where `augment` finds them, and are not made again.

    Parameters
    ----------
    options : of the variants; negatives have the same sampler steps and draws, and one an image
    per_label, seeds : real training images of a label; repeats
    train_steps : of every network
    negatives : also learn by contrast, without and with negatives
    ood : data set that is to be told from the run's (contrastive rows, and the CNN's); its label does not matter
    settings : with what is to differ from the run's own: seed, device, precision

    Raises
    ------
    OutputError, InputError
    """
    started = time.monotonic()
    options = replace(options, kind="variants").resolved()
    others = negatives_of(options)
    run = open_finished(folder, "finetune", settings, progress)
    test = held_out_images(run)
    strangers = _strangers(run, ood)
    chosen = [few_images(run.dataset, run.settings.finetune.held_out, per_label, seed) for seed in range(seeds)]
    sources = list({i.image_id: i for part in chosen for i in part}.values())
    kinds = [options, others] if negatives else [options]
    with run.directory.lock():
        try:
            made = {o.kind: _synthetic(run, sources, o) for o in kinds}
        except KeyboardInterrupt as stop:
            raise InterruptedRun(
                f"stopped; finished shards stay in {run.directory.path('augment')}, and the same command continues"
            ) from stop
    judge = _Judge(run, test, strangers, train_steps)
    results: dict[tuple[str, str], list[tuple[np.ndarray, float]]] = {}
    progress.start("train and judge classifiers", seeds)
    for seed, images in enumerate(chosen):
        for key, value in judge.of_seed(images, {k: kept for k, (kept, _) in made.items()}, seed).items():
            results.setdefault(key, []).append(value)
        progress.advance()
    progress.finish()
    found = {k: Found(np.stack([h for h, _ in v]), np.array([a for _, a in v])) for k, v in results.items()}
    groups = [i.group for i in test]
    both, base = found["cnn", "classical+variants"], found["cnn", BASELINE]
    gain, error = mean_and_error(both.hits - base.hits, groups)
    contrast: dict[str, float | None] = dict.fromkeys(
        ("accuracy_gain_negatives", "accuracy_gain_negatives_error", "auroc_gain", "auroc_gain_error")
    )
    if negatives:
        without, with_them = (found["linear on contrastive", name] for name in CONTRASTIVE)
        values = (*mean_and_error(with_them.hits - without.hits, groups), *_over_seeds(with_them.auroc - without.auroc))
        contrast = dict(zip(contrast, map(_rounded, values), strict=True))
    trained = run.trained_on if run.settings.finetune.enabled else frozenset()
    return AugmentBenchmark(
        accuracy=round(float(both.hits.mean()), 4), gain=round(gain, 4), gain_error=round(error, 4), **contrast,
        n=len(test), chance=round(max(sum(n in i.labels for i in test) for n in run.dataset.labels) / len(test), 4),
        per_label=per_label, seeds=seeds, train_steps=train_steps,
        made={kind: total for kind, (_, total) in made.items()},
        kept={kind: round(sum(map(len, kept.values())) / total, 4) for kind, (kept, total) in made.items()},
        generator_images=len(trained or ()), ood=ood, n_ood=len(strangers), labels=run.dataset.labels,
        options={o.kind: o.as_dict() for o in kinds}, rows=_table(found, groups),
        seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip


def negatives_of(options: AugmentOptions) -> AugmentOptions:
    """Return the options of the negatives that go with those of variants."""
    return AugmentOptions("negatives", 1, steps=options.steps, draws=options.draws).resolved()


def plan_of(
    settings: Settings, folder: Path, options: AugmentOptions, *, per_label: int, seeds: int, train_steps: int,
    negatives: bool, ood: str,
) -> dict[str, Any]:  # fmt: skip
    """Return what `evaluate_augment` would do, for `--dry-run`: nothing is written.

    Raises
    ------
    InputError
    """
    dataset = load_dataset(settings.dataset)
    share = settings.finetune.held_out
    chosen = [few_images(dataset, share, per_label, seed) for seed in range(seeds)]
    sources = len({i.image_id for part in chosen for i in part})
    rivals = len(rival_labels(dataset.labels, dataset.labels[0], dataset.labels[0]))
    kinds = [options, negatives_of(options)] if negatives else [options]
    return {
        "run": str(folder), "held-out images": len(dataset.held_out(share)[1]), "sources": sources,
        "networks to train": seeds * (len(ROWS) + 2 * negatives), "train steps": train_steps, "ood": ood,
        "UNet evaluations at most": sources * sum(evaluations_of(o, rivals) for o in kinds),
    }  # fmt: skip


def few_images(dataset: LabelledImages, held_out: float, per_label: int, seed: int) -> list[LabelledImage]:
    """Return `per_label` training images of each label, of those that have no other, by a hash with the seed.

    Raises
    ------
    InputError : for a label with fewer than two of them.
    """
    training = training_images(dataset, held_out)
    found: list[LabelledImage] = []
    for label in dataset.labels:
        alone = sorted(
            (i for i in training if i.labels == (label,)), key=lambda i: unit_hash(i.image_id, f"few {seed}")
        )
        if len(alone) < 2:
            raise InputError(
                f"{len(alone)} training images have the label {label!r} and no other, but a classifier needs two; "
                "leave such labels out (dataset.labels)"
            )
        found += alone[:per_label]
    return found


def _pixels(image: Image.Image, run: Run) -> Tensor:
    """(3, S, S): whatever their shape, classifiers see the square in the middle of all pictures."""
    return torch.from_numpy(prepare(image, run.latents.size, run.latents.step, 1.0)[0])


def _stack(dataset: LabelledImages, images: Sequence[LabelledImage], run: Run) -> Tensor:
    return torch.stack([_pixels(dataset.open(i), run) for i in images])


def _strangers(run: Run, name: str) -> Tensor:
    """Pictures (n, 3, S, S) of another data set, without any that the run has, too; chosen by a hash."""
    try:
        other = load_dataset(resolve_settings(name).dataset)
    except DatasetError as error:
        raise InputError(
            f"--ood {name}: {error} (labels do not matter here: a built-in name, a run directory, or folders of images "
            "without a table will do)"
        ) from error
    images = [i for i in other if i.image_id not in run.labels_of]
    images = sorted(images, key=lambda i: unit_hash(i.image_id, "ood"))[:OOD_IMAGES]
    if not images:
        raise InputError(f"--ood {name}: all its images are in the run's own data set; name another one")
    return _stack(other, images, run)


def _synthetic(
    run: Run, sources: Sequence[LabelledImage], options: AugmentOptions
) -> tuple[dict[str, list[Tensor]], int]:
    """Make what is missing; return image_id of a source -> what is kept of it, and how many were made."""
    folder = shards_folder(run, options)
    names, _ = make_shards(run, folder, sources, options)
    unit = unit_of(run)
    kept: dict[str, list[Tensor]] = {image.image_id: [] for image in sources}
    total = 0
    for name in names:
        shard = read_shard(folder, name)
        for row in judged(shard.rows, options, unit):
            total += 1
            if row["kept"]:
                picture = Image.fromarray(shard.pictures[shard.position(row), row["variant"]])
                kept[row["source_image_id"]].append(_pixels(picture, run))
    return kept, total


class _Judge:
    """Trains classifiers of one seed and judges them; held-out pictures are read once."""

    def __init__(self, run: Run, test: Sequence[LabelledImage], strangers: Tensor, steps: int) -> None:
        self.run, self.strangers, self.steps = run, strangers, steps
        self.pictures = _stack(run.dataset, test, run)
        labels = run.dataset.labels
        self.true = np.array([[label in i.labels for label in labels] for i in test])
        self.flip = run.settings.finetune.flip

    def of_seed(
        self, images: Sequence[LabelledImage], kept: Mapping[str, dict[str, list[Tensor]]], seed: int
    ) -> dict[tuple[str, str], tuple[np.ndarray, float]]:
        """Return (learner, row) -> hits (n,) on held-out images, and the AUROC."""
        labels = self.run.dataset.labels
        pictures = _stack(self.run.dataset, images, self.run)
        none = pictures[:0]
        variants = [torch.stack(v) if (v := kept["variants"][i.image_id]) else none for i in images]
        few = Few(pictures, torch.tensor([labels.index(i.labels[0]) for i in images]), variants)
        found: dict[tuple[str, str], tuple[np.ndarray, float]] = {}
        for name, (classical, synthetic) in ROWS.items():
            draw: Draw = partial(few.draw, classical=classical, synthetic=synthetic, flip=self.flip)
            model = train_cnn(few, draw, len(labels), self.steps, seed)
            logits, theirs = applied(model, self.pictures), applied(model, self.strangers)
            found["cnn", name] = self.hits(logits), self.auroc(_confidence(logits), _confidence(theirs))
            linear = train_linear(few, draw, seed, fixed_features)
            found["linear on pixels", name] = self.linear_hits(linear, fixed_features(self.pictures)), math.nan
        if "negatives" in kept:
            extra = [picture for image in images for picture in kept["negatives"][image.image_id]]
            draw = partial(few.draw, classical=True, synthetic=False, flip=self.flip)
            for name, given in zip(CONTRASTIVE, (none, torch.stack(extra) if extra else none), strict=True):
                encoder = train_contrastive(few, draw, self.steps, seed, given)
                features: Callable[[Tensor], np.ndarray] = partial(applied, encoder)
                known, own, theirs = (features(x) for x in (pictures, self.pictures, self.strangers))
                linear = train_linear(few, draw, seed, features)
                auroc = self.auroc(nearest_similarity(own, known), nearest_similarity(theirs, known))
                found["linear on contrastive", name] = self.linear_hits(linear, own), auroc
        return found

    def hits(self, logits: np.ndarray) -> np.ndarray:
        return self.true[np.arange(len(logits)), logits.argmax(1)].astype(np.float64)

    def linear_hits(self, model: Any, features: np.ndarray) -> np.ndarray:
        return self.true[np.arange(len(features)), model.predict(features)].astype(np.float64)

    @staticmethod
    def auroc(own: np.ndarray, theirs: np.ndarray) -> float:
        return float(roc_auc_score(np.r_[np.ones(len(own)), np.zeros(len(theirs))], np.r_[own, theirs]))


def _confidence(logits: np.ndarray) -> np.ndarray:
    """The highest probability of each row."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return 1 / shifted.sum(1)


def mean_and_error(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Return the mean of values (seeds, n) and its standard error, over held-out groups and over seeds.

    The two variances are added: other images would have been held out, and others would have been trained on. Of a
    single seed only the former is known.
    """
    over_groups = clustered_error(values.mean(0), groups)
    over_seeds = _over_seeds(values.mean(1))[1]
    return float(values.mean()), math.hypot(over_groups, 0.0 if math.isnan(over_seeds) else over_seeds)


def _over_seeds(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over seeds (s,); the latter is not a number of a single one."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _table(found: Mapping[tuple[str, str], Found], groups: Sequence[str]) -> list[dict[str, Any]]:
    """A row a learner and its training images; differences are to the learner's baseline."""
    rows = []
    for (learner, name), one in found.items():
        baseline = CONTRASTIVE[0] if name in CONTRASTIVE else BASELINE
        accuracy, error = mean_and_error(one.hits, groups)
        difference, its_error = mean_and_error(one.hits - found[learner, baseline].hits, groups)
        alone = found.get((learner, "real"))
        real, real_error = mean_and_error(one.hits - alone.hits, groups) if alone else (math.nan, math.nan)
        auroc, auroc_error = _over_seeds(one.auroc)
        rows.append(
            {"learner": learner, "name": name, "accuracy": _rounded(accuracy), "standard_error": _rounded(error),
             "baseline": baseline, "difference": _rounded(difference), "difference_error": _rounded(its_error),
             "over_real": _rounded(real), "over_real_error": _rounded(real_error),
             "auroc": _rounded(auroc), "auroc_error": _rounded(auroc_error)}
        )  # fmt: skip
    return rows
