"""The elements of every method, and their best matches in images: what `evaluate elements` measures.

See elements.py for what is compared and why; here the patches are chosen, described and searched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.cluster import KMeans

from typicality.dataset import prepare
from typicality.dataset.split import unit_hash
from typicality.errors import InputError, OutputError
from typicality.evaluation.classify import NOTHING_HELD_OUT, held_out_images
from typicality.evaluation.rivals.gradcam import SmallCnn, cnn_features, cnn_probabilities, gradcam, train_cnn
from typicality.evaluation.rivals.patches import STRIDE, PatchPool, descriptors, discriminative_patches
from typicality.mining.boxes import best_boxes, box_means
from typicality.mining.clusters import cluster_elements
from typicality.mining.features import patch_features
from typicality.mining.patches import PatchSelection, patch_side, top_patches
from typicality.mining.tables import in_table_order
from typicality.mining.whitening import Whitening
from typicality.passes import score_pass
from typicality.pipeline import FIRST_PASS, feature_extractor
from typicality.progress import Progress
from typicality.records import LabelledImage, Patch
from typicality.run import Run
from typicality.scoring.scorer import Job
from typicality.scoring.shards import ScoreReader

OURS = "ours"
PUBLISHED = "published"
DIFT, TYPICALITY = "dift", "typicality"
SPARE = 2
"""A method offers so many times the elements that are drawn from it with each seed."""
POOL = 5
"""Candidates of `least typical` and `gradcam` before clustering, as a multiple of the elements wanted."""
IMAGES_AT_ONCE = 32
NOISES = 4
"""Noises a DIFT feature is averaged over at most: every image is searched, and all methods gain alike from more."""
WHITENING_IMAGES = 400
"""Training images whose features say how features vary; 400 have ten thousand patches for some hundred dimensions."""
CROSS_LABEL = "cross-label"
CNN_SIZE = 128
"""Longest short side in pixels that the CNN sees; its maps are resized to the latent grid."""
POOL_BYTES = 2**30
"""Descriptors of training images that `hog svm` holds at once; beyond it uses fewer images, and the result says so."""


Offered = dict[str, list[Patch]] | None


@dataclass(frozen=True)
class ElementSet:
    """The elements of one method and seed, in one space.

    Attributes
    ----------
    patches : n elements; only image_id, label, row, column and side are meant
    match : what is known of an image -> (n,) how much its best match with each element speaks for the element
    """

    method: str
    space: str
    seed: int
    patches: tuple[Patch, ...]
    match: Callable[[Seen], np.ndarray]


@dataclass(frozen=True)
class Seen:
    """One image as the elements are searched in it.

    Attributes
    ----------
    dift : (positions, d), whitened, a patch at every cell
    """

    work: Workbench
    image: LabelledImage
    dift: np.ndarray

    @cached_property
    def lead(self) -> np.ndarray:
        """(positions, K) how much more typical of each label a patch is than of the best other, see `lead_of`."""
        return self.work.lead(self.image)

    @cached_property
    def hog(self) -> np.ndarray:
        """(positions, d) HOG descriptors."""
        grid = descriptors(self.work.pixels(self.image), self.work.run.base.factor, self.work.side)
        return grid.reshape(-1, grid.shape[-1])


class Workbench:
    """What all methods share: images, pixels, features, and the grid of patches.

    Parameters
    ----------
    run : mined
    images : of each side of the split at most, chosen by their content
    paper_draws : draws an image of the published protocol
    draws : draws an image in which elements are searched, for its typicality of every label; even

    Attributes
    ----------
    making : training images, that elements come from and rivals learn from
    fitting : one half of the held-out groups, on which matches become predictions of labels
    held_out : images of the other half, on which everything is measured

    Raises
    ------
    InputError : where nothing is held out, a label lacks images to fit on, or each image has a model of its fold.
    """

    def __init__(self, run: Run, images: int, progress: Progress, paper_draws: int = 16, draws: int = 8) -> None:
        self.run, self.progress, self.paper_draws, self.draws = run, progress, paper_draws, draws
        self.warnings: list[str] = []
        if run.folds > 1:
            raise InputError(
                f"{run.directory.folder} was mined with {run.folds} folds: its elements were chosen in view of the "
                "held-out images. Mine with --folds 1 into another --out, and give that run"
            )
        held_out = held_out_images(run)
        training = run.dataset.held_out(run.settings.finetune.held_out)[0]
        if not training:
            raise InputError(NOTHING_HELD_OUT)
        self.making = _some(training, images)
        self.fitting, self.held_out = in_halves(_some(held_out, images))
        single = {image.labels[0] for image in self.fitting if len(image.labels) == 1}
        carried = {label for image in self.making for label in image.labels}
        if short := [label for label in run.dataset.labels if label not in single & carried]:
            raise InputError(
                f"too few groups carry {', '.join(short[:5])}: training images give elements, and half of the held-out "
                "ones show what elements tell of labels. Raise --images, or leave these labels out"
            )
        self.side = patch_side(run.latents.short_side, run.settings.mine.patch, run.base.factor)
        self.labels = run.dataset.labels
        self.groups = {image.image_id: image.group for image in run.dataset}
        self._sizes = {image.image_id: (image.width, image.height) for image in run.dataset}
        self._small: dict[str, np.ndarray] = {}
        self._cnns: dict[int, SmallCnn] = {}
        self._lowest, self._mined, self._by_paper = (None,) * 3  # type: tuple[Offered, Offered, Offered]
        self.detector = "fine-tuned" if run.settings.finetune.enabled else "base"
        null = run.denoiser.encode_prompts([run.prompts.null])[0]
        self.extract = feature_extractor(run, run.denoiser, lambda _: null, min(NOISES, run.settings.mine.noises))

    # ------------------------------------------------------------------------------------------- images

    def pixels(self, image: LabelledImage) -> np.ndarray:
        """(3, H, W) float32 in [-1, 1], as the diffusion model sees the image."""
        latents = self.run.latents
        return prepare(self.run.dataset.open(image), latents.size, latents.step, latents.max_aspect)[0]

    def small(self, image: LabelledImage) -> np.ndarray:
        """The same with a short side of at most CNN_SIZE pixels, for the CNN; kept as bytes."""
        if image.image_id not in self._small:
            size = min(CNN_SIZE, self.run.latents.size)
            found, _ = prepare(self.run.dataset.open(image), size, 4, self.run.latents.max_aspect)
            self._small[image.image_id] = np.round((found + 1) * 127.5).astype(np.uint8)
        return self._small[image.image_id].astype(np.float32) / 127.5 - 1

    def truth(self, images: Sequence[LabelledImage]) -> np.ndarray:
        """(n, K) bool, which labels each image carries."""
        return np.array([[label in image.labels for label in self.labels] for image in images])

    def cells(self, image_id: str) -> tuple[int, int]:
        """(h, w) of the image's latent."""
        view, factor = self.run.latents.view(image_id), self.run.base.factor
        return view.height // factor, view.width // factor

    def grid(self, image_id: str) -> list[Patch]:
        """A patch at every cell of an image."""
        height, width = self.cells(image_id)
        rows, columns = height - self.side + 1, width - self.side + 1
        return [self.patch(image_id, "", row, column) for row in range(rows) for column in range(columns)]

    def patch(self, image_id: str, label: str, row: int, column: int) -> Patch:
        return Patch(image_id, label, row, column, self.side, (0, 0, 0, 0), 0.0, 0.0)

    def features(self, patches: Sequence[Patch]) -> np.ndarray:
        """(n, d) DIFT features under the null prompt; the patches' labels play no part."""
        return self.extract([replace(p, label="") if p.label else p for p in patches], self.run.latents.get)

    @cached_property
    def whitening(self) -> Whitening:
        """Of the features of training images, whatever their labels."""
        images = _some(self.making, WHITENING_IMAGES)
        return Whitening.of(self.features([patch for image in images for patch in self.grid(image.image_id)]))

    @cached_property
    def _cross_label(self) -> ScoreReader:
        """Maps of the images that elements are searched in, under every label, their own or not."""
        jobs = [Job(image.image_id, self.labels) for image in (*self.fitting, *self.held_out)]
        return score_pass(self.run, "evaluate elements, cross-label", CROSS_LABEL, self.draws, jobs)

    def lead(self, image: LabelledImage) -> np.ndarray:
        """(positions, K) the lead of each label, for each patch of the grid, from the same draws for all labels."""
        maps = [self._cross_label.get(image.image_id, label) for label in self.labels]
        stacked = np.stack([*(m.typicality for m in maps), maps[0].null_loss])
        boxes = box_means(stacked, self.side).reshape(len(stacked), -1).T
        return lead_of(boxes[:, :-1], boxes[:, -1])

    def cnn(self, seed: int, epochs: int) -> SmallCnn:
        if seed not in self._cnns:
            images = [self.small(image) for image in self.making]
            targets = self.truth(self.making).astype(np.float32)
            self._cnns[seed] = train_cnn(images, targets, seed, epochs, device=self.run.device, progress=self.progress)
        return self._cnns[seed]

    def cnn_accuracy(self, seed: int) -> float:
        """Of a CNN that has been trained, on the held-out images."""
        predicted = cnn_probabilities(self._cnns[seed], [self.small(i) for i in self.held_out]).argmax(1)
        return float(self.truth(self.held_out)[np.arange(len(predicted)), predicted].mean())

    # ----------------------------------------------------------------------------------------- elements

    def element_sets(self, count: int, seed: int, epochs: int) -> list[ElementSet]:
        """The elements of every method and space for one seed; ours first."""
        rng = np.random.default_rng([seed, self.run.settings.seed])
        model = self.cnn(seed, epochs)
        hog = self._hog(count, seed, rng)
        boxes = self._drawn(self._gradcam(model, count), count, rng)
        by_cnn = self._cnn_features(model, boxes)

        def hog_match(seen: Seen) -> np.ndarray:
            return (seen.hog @ hog[1].T).max(0)

        def cnn_match(seen: Seen) -> np.ndarray:
            found = cnn_features(model, self.small(seen.image))
            image_id = seen.image.image_id
            return (patch_features(found, self.grid(image_id), self.cells(image_id)) @ by_cnn.T).max(0)

        found: dict[str, Sequence[Patch]] = {
            OURS: self._drawn(self._ours(count), count, rng),
            PUBLISHED: self._drawn(self._published(count), count, rng),
            "random": self._random(count, rng),
            "least typical": self._drawn(self._least_typical(count), count, rng),
            "hog svm": hog[0],
            "gradcam": boxes,
        }
        detectors = {method: self.whitening.unit(self.features(patches)) for method, patches in found.items()}
        return [
            *(self._by_typicality(m, seed, patches, detectors[m]) for m, patches in found.items()),
            *(self._by_dift(m, seed, patches, detectors[m]) for m, patches in found.items()),
            ElementSet("hog svm", "hog", seed, tuple(hog[0]), hog_match),
            ElementSet("gradcam", "cnn", seed, tuple(boxes), cnn_match),
        ]

    def _by_dift(self, method: str, seed: int, patches: Sequence[Patch], detectors: np.ndarray) -> ElementSet:
        """A match is worth what the detector says of the patch that it likes best."""
        return ElementSet(method, DIFT, seed, tuple(patches), lambda seen: (seen.dift @ detectors.T).max(0))

    def _by_typicality(self, method: str, seed: int, patches: Sequence[Patch], detectors: np.ndarray) -> ElementSet:
        """A match is the patch that the detector likes best, and worth the lead of the element's label there."""
        own = np.array([self.labels.index(p.label) for p in patches], dtype=np.int64)

        def match(seen: Seen) -> np.ndarray:
            return seen.lead[(seen.dift @ detectors.T).argmax(0), own]

        return ElementSet(method, TYPICALITY, seed, tuple(patches), match)

    def _drawn(self, offered: dict[str, list[Patch]], count: int, rng: np.random.Generator) -> list[Patch]:
        """`count` patches a label at random from the best SPARE * count offered."""
        drawn: list[Patch] = []
        for label in self.labels:
            best = offered.get(label, [])[: SPARE * count]
            drawn += [best[i] for i in sorted(rng.permutation(len(best))[:count])]
        return drawn

    def _ours(self, count: int) -> dict[str, list[Patch]]:
        """Mined elements in the images of `making`, by clusters that are formed and ranked from these alone.

        The clusters of the run hold elements of held-out images as well, which were scored under their own labels:
        neither their ranks nor their centroids are used.
        """
        if self._mined is None:
            table = pq.read_table(self.run.directory.path("elements.parquet")).to_pylist()
            features = np.load(self.run.directory.path("features.npy"), allow_pickle=False)
            if sides := {e["side"] for e in table} - {self.side}:
                raise OutputError(
                    f"the elements have sides {sides}, not {self.side} cells; run `typicality mine` again"
                )
            making = {image.image_id for image in self.making}
            rows = [i for i, element in enumerate(table) if element["image_id"] in making]
            if not rows:
                raise InputError(
                    "none of the mined elements lies in an image that elements may come from: raise --images"
                )
            patches = [
                replace(
                    self.patch(e["image_id"], e["label"], e["row"], e["column"]), typicality=e["typicality"],
                    specificity=e["specificity"],
                )
                for e in (table[i] for i in rows)
            ]  # fmt: skip
            similarity = self.run.settings.mine.merge_similarity
            self._mined = self._by_clusters(patches, np.ascontiguousarray(features[rows]), similarity)
        return self._enough(self._mined, count, "mined")

    def _published(self, count: int) -> dict[str, list[Patch]]:
        """The method as published, on the same images and with the same model.

        One pass of independent draws scores every image of `making`, its best patches are elements at those scores,
        and k-means alone makes clusters of them. With 16 draws instead of the published 100, or as many as
        `--paper-draws` asks for, the pass costs as much as this comparison can bear.
        """
        if self._by_paper is None:
            run, mine = self.run, self.run.settings.mine
            settings = run.settings.model_copy(
                update={"score": run.settings.score.model_copy(update={"protocol": "paper"})}
            )
            paper = replace(run, settings=settings)
            paper.take_model(run)
            jobs = [Job(image.image_id, image.labels) for image in self.making]
            reader = score_pass(paper, "evaluate elements, published", PUBLISHED, self.paper_draws, jobs)
            wanted = {(job.image_id, label) for job in jobs for label in job.labels}
            selection = replace(self._selection, per_label=mine.per_label, share=mine.share)
            maps = (m for m in reader if (m.image_id, m.label) in wanted)
            found = in_table_order(top_patches(maps, selection, self._size_of))
            states = dict(
                zip(self.labels, run.denoiser.encode_prompts(run.prompts.of_all(self.labels))[1:], strict=True)
            )
            extract = feature_extractor(run, run.denoiser, states.__getitem__)
            self._by_paper = self._by_clusters(found, extract(found, run.latents.get), 1.0)
        return self._enough(self._by_paper, count, PUBLISHED)

    def _by_clusters(self, patches: Sequence[Patch], features: np.ndarray, similarity: float) -> dict[str, list[Patch]]:
        """Every label's patches: the most central of each cluster, clusters by rank, then the next of each, ..."""
        mine = self.run.settings.mine
        found = cluster_elements(
            patches, features, self.groups.__getitem__, clusters=mine.clusters, merge_similarity=similarity,
            min_images=mine.min_images, seed=self.run.settings.seed,
        )  # fmt: skip
        offered: dict[str, list[Patch]] = {label: [] for label in self.labels}
        for i in np.lexsort((found.cluster, found.rank_in_cluster)):
            offered[patches[i].label].append(patches[i])
        return offered

    def _enough(self, offered: dict[str, list[Patch]], count: int, name: str) -> dict[str, list[Patch]]:
        if short := [label for label, found in offered.items() if len(found) < count]:
            self._warn(f"fewer than {count} {name} elements lie in the images used for: {', '.join(short)}")
        return offered

    def _size_of(self, image_id: str) -> tuple[int, int]:
        return self._sizes[image_id]

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _random(self, count: int, rng: np.random.Generator) -> list[Patch]:
        found = []
        for label in self.labels:
            own = [image for image in self.making if label in image.labels]
            for i in rng.integers(0, len(own), count) if own else ():
                height, width = self.cells(own[i].image_id)
                row, column = rng.integers(0, height - self.side + 1), rng.integers(0, width - self.side + 1)
                found.append(self.patch(own[i].image_id, label, int(row), int(column)))
        return found

    @cached_property
    def _selection(self) -> PatchSelection:
        return PatchSelection(self.side, self.run.base.factor, self.run.settings.mine.per_image, share=1.0)

    def _least_typical(self, count: int) -> dict[str, list[Patch]]:
        """The lowest scores of the run's first pass, one of every cluster of their features in turn."""
        if self._lowest is None:
            run = self.run
            jobs = [Job(image.image_id, image.labels) for image in self.making]
            reader = score_pass(run, "evaluate elements", FIRST_PASS, run.first_draws, jobs)
            wanted = {(job.image_id, label) for job in jobs for label in job.labels}
            turned = (replace(m, typicality=-m.typicality) for m in reader if (m.image_id, m.label) in wanted)
            selection = replace(self._selection, per_label=POOL * count)
            self._lowest = self._clustered(top_patches(turned, selection, self._size_of), count)
        return self._lowest

    def _gradcam(self, model: SmallCnn, count: int) -> dict[str, list[Patch]]:
        """The boxes with the highest mean Grad-CAM of their image's label, one of every cluster in turn."""
        best: dict[str, list[tuple[float, Patch]]] = {label: [] for label in self.labels}
        for image in self.making:
            pixels, shape = self.small(image), self.cells(image.image_id)
            for label in image.labels:
                cam = torch.from_numpy(gradcam(model, pixels, self.labels.index(label)))
                at_cells = F.interpolate(cam[None, None], shape, mode="bilinear", align_corners=False)[0]
                rows, columns, scores = best_boxes(
                    box_means(at_cells.numpy(), self.side), self.side, self._selection.per_image
                )
                best[label] += [
                    (float(s), self.patch(image.image_id, label, int(r), int(c)))
                    for r, c, s in zip(rows[0], columns[0], scores[0], strict=True)
                    if np.isfinite(s)
                ]
        kept = {
            label: [p for _, p in sorted(found, key=lambda f: (-f[0], f[1].image_id, f[1].row, f[1].column))]
            for label, found in best.items()
        }
        return self._clustered({label: found[: POOL * count] for label, found in kept.items()}, count)

    def _clustered(self, offered: dict[str, list[Patch]], count: int) -> dict[str, list[Patch]]:
        """Reorder each label's patches (best first): the best of every k-means cluster, then the second, ..."""
        result = {}
        for label, patches in offered.items():
            if len(patches) <= count:
                result[label] = patches
                continue
            features = self.features(patches)
            assigned = KMeans(count, n_init=1, random_state=self.run.settings.seed).fit_predict(features)
            members: dict[int, list[Patch]] = {}
            for cluster, patch in zip(assigned.tolist(), patches, strict=True):
                members.setdefault(cluster, []).append(patch)
            result[label] = in_turn(list(members.values()))
        return result

    @cached_property
    def _pool(self) -> PatchPool:
        cell, stride = self.run.base.factor, max(STRIDE, self.side // 2)
        first = descriptors(self.pixels(self.making[0]), cell, self.side)[::stride, ::stride]
        fit = max(2, POOL_BYTES // first.nbytes)
        chosen = _some(self.making, fit)
        if len(chosen) < len(self.making):
            self._warn(f"hog svm learned from {len(chosen)} of {len(self.making)} images, for want of memory")
        return PatchPool.of(((i.image_id, self.pixels(i)) for i in chosen), cell, self.side, stride)

    def _hog(self, count: int, seed: int, rng: np.random.Generator) -> tuple[list[Patch], np.ndarray]:
        """Patches and weights (n, d) of the HOG detectors."""
        labels_of = self.run.labels_of
        patches, weights = [], []
        for label in self.labels:
            carries = np.array([label in labels_of[image_id] for image_id in self._pool.image_ids])
            found = discriminative_patches(self._pool, carries, SPARE * count, seed)
            for i in sorted(rng.permutation(len(found))[:count]):
                patches.append(self.patch(found[i].image_id, label, found[i].row, found[i].column))
                weights.append(found[i].weights)
            self.progress.say(f"hog svm, seed {seed}: {len(found)} detectors of {label}")
        if not weights:
            raise InputError("no image of any label is among the training images: raise --images")
        return patches, np.stack(weights)

    def _cnn_features(self, model: SmallCnn, patches: Sequence[Patch]) -> np.ndarray:
        images = {image.image_id: image for image in self.making}
        found = [
            patch_features(cnn_features(model, self.small(images[p.image_id])), [p], self.cells(p.image_id))
            for p in patches
        ]
        return np.concatenate(found)

    # ---------------------------------------------------------------------------------------- detection

    def matches(self, sets: Sequence[ElementSet]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every set the best match of each element in images of `fitting` and of `held_out`: (n, elements) each.

        No element comes from either, and no detector was trained on them.
        """
        everything = [*self.fitting, *self.held_out]
        found: list[list[np.ndarray]] = [[] for _ in sets]
        self.progress.start("detect elements", len(everything))
        for start in range(0, len(everything), IMAGES_AT_ONCE):
            part = everything[start : start + IMAGES_AT_ONCE]
            grids = [self.grid(image.image_id) for image in part]
            features = self.whitening(self.features([patch for grid in grids for patch in grid]))
            ends = np.cumsum([len(grid) for grid in grids])
            for image, end, grid in zip(part, ends, grids, strict=True):
                seen = Seen(self, image, features[end - len(grid) : end])
                for values, made in zip(found, sets, strict=True):
                    values.append(made.match(seen))
            self.progress.advance(len(part))
        self.progress.finish()
        wholes = [np.stack(values).astype(np.float64) for values in found]
        return [(whole[: len(self.fitting)], whole[len(self.fitting) :]) for whole in wholes]


def lead_of(
    typicality: Float[np.ndarray, "patches labels"], null_loss: Float[np.ndarray, " patches"]
) -> Float[np.ndarray, "patches labels"]:
    """Return the typicality of each label less that of the best other label, over the root of the denoising error.

    A patch may be more typical of two labels than of the rest; only one of them leads. The noise of a difference of
    losses grows with the root of the loss (see `label_evidence`).
    """
    order = np.sort(typicality, axis=1)
    first, second = order[:, -1:], order[:, -2:-1]
    best_other = np.where(typicality == first, second, first)
    floor = np.finfo(np.float32).tiny
    return (typicality - best_other) / np.sqrt(np.maximum(null_loss, floor))[:, None]


def in_turn(members: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of every list, then the second of every list, and so on."""
    longest = max(map(len, members), default=0)
    return [some[i] for i in range(longest) for some in members if i < len(some)]


def in_halves(images: Sequence[LabelledImage]) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Divide images into two parts of as many groups, by a hash of the groups' names; relatives stay together."""
    names = sorted({image.group for image in images}, key=lambda name: unit_hash(name, "evaluate elements, halves"))
    first = set(names[::2])
    return [i for i in images if i.group in first], [i for i in images if i.group not in first]


def _some(images: Sequence[LabelledImage], limit: int) -> list[LabelledImage]:
    chosen = sorted(images, key=lambda i: unit_hash(i.image_id, "evaluate elements"))[:limit]
    return sorted(chosen, key=lambda i: i.image_id)
