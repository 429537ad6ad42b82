"""What the model says about every cell of an image: the evidence that maps are made of.

A pass draws noise at timesteps of one range and predicts it under the null prompt, the image's labels and, where
there is one, a reference label, all with the same draws. Unlike a score pass it also keeps the mean residual
r = E[eps - e], because its square says what the model cannot reconstruct: E|eps - e|^2 (the denoising error)
is that plus the variance over draws, which texture and chance dominate.

Maps of a pass, all (h, w) at latent size and averaged over channels, with e_0, e_c, e_r the predictions under the null
prompt, the label and the reference:

    error                 L(null) = E|eps - e_0|^2
    typicality            T(c) = L(null) - L(c)
    shift                 D^2 = E|e_c - e_0|^2
    plain_typicality, plain_shift  the same at the label scale 1, as published
    bias, label_bias      |E[eps - e_0]|^2, |E[eps - e_c]|^2
    mean_shift            |E[e_c - e_0]|^2
    reference_typicality  T(r);  reference_bias  |E[eps - e_r]|^2;  reference_shift  |E[e_c - e_r]|^2
    reference_distance    from cells of reference images, in features (distance.py; the same in all ranges)
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from typicality.applications.localize import distance
from typicality.config import key_of
from typicality.model.calibration import scaled_typicality, with_label_scale
from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.progress import Progress
from typicality.records import ModelView
from typicality.run import Run
from typicality.scoring.estimator import denoising_loss, loss_difference, noised, squared_shift
from typicality.scoring.noise import DrawPlan, image_generator
from typicality.scoring.shards import finished_shards
from typicality.store import write_arrays, write_table

PURPOSE = "localize"
FINE_TUNED, BASE = "fine-tuned", "base"
INDEX = pa.schema([("image_id", pa.string()), ("label", pa.string()), ("row", pa.int32())])
Range = tuple[float, float]
Request = tuple[str, tuple[str, ...]]  # image_id, labels


@dataclass(frozen=True)
class Evidence:
    """The maps of one image and label.

    Attributes
    ----------
    view : how the image was shown to the model
    maps : by name, float32 (ranges, h, w)
    """

    image_id: str
    label: str
    view: ModelView
    maps: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Pass:
    """One range of timesteps, ready to be drawn.

    Parameters
    ----------
    states : (labels + 1, tokens, width), the null prompt first
    plan : antithetic and stratified
    reference : the label that others are contrasted with
    """

    denoiser: Denoiser
    latents: LatentStore
    states: Tensor
    labels: tuple[str, ...]
    plan: DrawPlan
    seed: int
    reference: str | None
    batch_size: int
    label_scale: float = 1.0  # of the shift of predictions by a label (model/calibration.py)

    def __call__(self, requests: Sequence[Request]) -> list[tuple[str, str, dict[str, np.ndarray]]]:
        """Return (image_id, label, maps) of requests that share a latent shape and a number of labels."""
        slots = self._slots(requests)
        z = self.latents.stack([image_id for image_id, _ in requests])
        times, noises = [], []
        purpose = f"{PURPOSE} {self.plan.t_min:g}-{self.plan.t_max:g}"
        for image_id, _ in requests:
            generator = image_generator(image_id, self.seed, purpose)
            times.append(self.plan.timesteps(self.denoiser.timesteps, generator))
            noises.append(self.plan.noises(tuple(z.shape[1:]), generator))
        t, eps = torch.stack(times), torch.stack(noises)
        step = max(1, self.batch_size // (2 * len(requests) * len(slots)))
        residual, error, gain, shift = torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1)
        for start in range(0, self.plan.units, step):
            here = slice(start, start + step)
            parts = self._evaluate(z, t[:, here], eps[:, here], slots)
            residual, error, gain, shift = (
                total + part for total, part in zip((residual, error, gain, shift), parts, strict=True)
            )
        sums = [total / self.plan.draws for total in (residual, error, gain, shift)]
        return [row for i in range(len(requests)) for row in self._rows(requests[i], i, *sums)]

    def _slots(self, requests: Sequence[Request]) -> list[list[int]]:
        position = {label: i + 1 for i, label in enumerate(self.labels)}
        own = [[position[labels[j]] for _, labels in requests] for j in range(len(requests[0][1]))]
        reference = [] if self.reference is None else [[position[self.reference]] * len(requests)]
        return [[0] * len(requests), *own, *reference]

    def _evaluate(
        self, z: Float[Tensor, "n c h w"], t: Tensor, eps: Float[Tensor, "n u c h w"], slots: list[list[int]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return sums over units and signs: residuals (slots, n, c, h, w), L(null) (n, h, w), T and D^2 of the rest."""
        n, u = t.shape
        signed = torch.stack([eps, -eps], dim=2).flatten(0, 2)
        times = t[:, :, None].expand(n, u, 2).flatten()
        repeated = z[:, None].expand(n, 2 * u, *z.shape[1:]).flatten(0, 1)
        inputs = noised(repeated, signed, self.denoiser.alphas_cumprod[times])
        rows = [[prompt for prompt in slot for _ in range(2 * u)] for slot in slots]
        prediction = self.denoiser.predict_noise(inputs, times, self.states, rows, self.batch_size)
        prediction = with_label_scale(prediction, self.label_scale)
        target = signed.to(prediction.device)

        def summed(maps: Tensor, dim: int) -> Tensor:
            return maps.unflatten(dim, (n, 2 * u)).sum(dim).cpu()

        residual = summed(target - prediction, -4)
        error = summed(denoising_loss(target, prediction[0]), -3)
        gain = summed(loss_difference(target, prediction[0], prediction[1:]), -3)
        return residual, error, gain, summed(squared_shift(prediction[0], prediction[1:]), -3)

    def _rows(
        self, request: Request, i: int, residual: Tensor, error: Tensor, gain: Tensor, shift: Tensor
    ) -> Iterable[tuple[str, str, dict[str, np.ndarray]]]:
        image_id, labels = request
        square = residual[:, i].square().mean(1)  # (slots, h, w)
        for j, label in enumerate(labels):
            maps = {
                "error": error[i],
                "typicality": gain[j, i],
                "shift": shift[j, i],
                "plain_typicality": scaled_typicality(gain[j, i], shift[j, i], 1 / self.label_scale),
                "plain_shift": shift[j, i] / self.label_scale**2,
                "bias": square[0],
                "label_bias": square[j + 1],
                "mean_shift": (residual[0, i] - residual[j + 1, i]).square().mean(0),
            }
            if self.reference is not None:
                maps["reference_typicality"] = gain[-1, i]
                maps["reference_bias"] = square[-1]
                maps["reference_shift"] = (residual[-1, i] - residual[j + 1, i]).square().mean(0)
            yield image_id, label, {name: a.numpy().astype(np.float32) for name, a in maps.items()}


def collect(
    run: Run, requests: Sequence[Request], reference: str | None, ranges: Sequence[Range], draws: int,
    model: str = FINE_TUNED,
) -> list[Evidence]:  # fmt: skip
    """Draw what has not been drawn before, keep it in the run directory, and return the evidence of all requests.

    Parameters
    ----------
    requests : image ids and the labels each is to be localized for
    reference : label to contrast with
    ranges : of timesteps, shares of the training steps
    draws : UNet draws an image, label and range; even
    model : the run's fine-tuned models (each image by the one that has not seen it, with folds), or the base
    """
    folders = [_folder(run, reference, r, draws, model) for r in ranges]
    apart = [] if reference is None else [_distance_folder(run, reference, model)]
    wanted = key_of([[f.name for f in [*folders, *apart]], [[i, *labels] for i, labels in requests]])
    stage = PURPOSE if model == FINE_TUNED else f"{PURPOSE} {model}"
    maps = [(image_id, label) for image_id, labels in requests for label in labels]
    distances_of = [(image_id, "") for image_id, _ in requests]
    held = [*((folder, maps) for folder in folders), *((folder, distances_of) for folder in apart)]
    if not run.directory.is_done(stage, wanted) or not all(_rows_of(f).keys() >= set(keys) for f, keys in held):
        with run.directory.stage(stage, wanted) as entry:
            entry |= {"images": len(requests), "draws": draws * len(ranges)} | run.directory.built_on("finetune")
            evaluations = 0
            for part in _by_model(run, requests, model):
                denoiser = _denoiser(run, part[0][0], model)
                states = denoiser.encode_prompts(run.prompts.of_all(run.dataset.labels))
                before = denoiser.evaluations
                for folder, (low, high) in zip(folders, ranges, strict=True):
                    draw = Pass(
                        denoiser, run.latents, states, run.dataset.labels, DrawPlan(draws // 2, low, high),
                        run.settings.seed, reference, run.batch_size, run.label_scale_of(denoiser),
                    )  # fmt: skip
                    _fill(folder, draw, part, run.settings.score.shard_images, run.progress)
                evaluations += denoiser.evaluations - before
            if reference is not None:
                evaluations += _fill_distances(run, requests, reference, model)
            entry["unet_evaluations"] = entry.get("unet_evaluations", 0) + evaluations
    stored = [_read(folder) for folder in folders]
    distances = _read(apart[0]) if apart else {}
    return [
        Evidence(
            image_id, label, run.latents.view(image_id),
            _stacked([s[image_id, label] | distances.get((image_id, ""), {}) for s in stored]),
        )
        for image_id, labels in requests
        for label in labels
    ]  # fmt: skip


def _distance_folder(run: Run, reference: str, model: str) -> Path:
    usual = sorted(i.image_id for i in run.dataset if i.labels == (reference,))
    weights = run.weights_key if model == FINE_TUNED else run.base_hash
    mine = run.settings.mine
    key = key_of(
        [
            weights, run.latents.folder.name, run.prompts.null, distance.MEASURE, reference, usual, mine.timestep,
            mine.up_block, run.settings.seed, str(run.dtype), run.folds, sorted(run.held_out),
        ]
    )  # fmt: skip
    return run.directory.path("scores", f"{PURPOSE}-distance-{key}")


def _fill_distances(run: Run, requests: Sequence[Request], reference: str, model: str) -> int:
    """Measure the distances of images that have none yet, a shard at a time; return the UNet evaluations it took."""
    folder = _distance_folder(run, reference, model)
    done = {image_id for image_id, _ in _rows_of(folder)}
    missing = [image_id for image_id, _ in requests if image_id not in done]
    if not missing:
        return 0
    denoiser = run.feature_denoiser if model == FINE_TUNED else Denoiser(run.base, run.device, run.dtype)
    before = denoiser.evaluations
    fold_of = {image_id: run.fold_of(image_id) for image_id in missing}
    shards: dict[tuple[int, ...], list[tuple[str, str, dict[str, np.ndarray]]]] = defaultdict(list)
    for image_id, found in distance.distance_maps(run, denoiser, missing, reference, fold_of):
        rows = shards[found.shape]
        rows.append((image_id, "", {distance.NAME: found}))
        if len(rows) == run.settings.score.shard_images:
            _write(folder, rows)
            rows.clear()
    for rows in shards.values():
        if rows:
            _write(folder, rows)
    return denoiser.evaluations - before


def _folder(run: Run, reference: str | None, span: Range, draws: int, model: str) -> Path:
    weights = run.weights_key if model == FINE_TUNED else run.base_hash
    key = key_of(
        [
            weights, run.latents.folder.name, run.settings.prompt.model_dump(), PURPOSE, reference, span, draws,
            run.settings.score.protocol == "paper", run.settings.seed, str(run.dtype),
        ]
    )  # fmt: skip
    return run.directory.path("scores", f"{PURPOSE}-{key}")


def _by_model(run: Run, requests: Sequence[Request], model: str) -> list[list[Request]]:
    """Split requests by the model that draws them."""
    parts: dict[int, list[Request]] = defaultdict(list)
    for request in sorted(requests):
        parts[run.fold_of(request[0]) if model == FINE_TUNED else 0].append(request)
    return [parts[fold] for fold in sorted(parts)]


def _denoiser(run: Run, image_id: str, model: str) -> Denoiser:
    if model == FINE_TUNED:
        return run.denoiser_of(run.fold_of(image_id))
    return Denoiser(run.base, run.device, run.dtype)


def _fill(folder: Path, draw: Pass, requests: Sequence[Request], shard_images: int, progress: Progress) -> None:
    """Draw the requests that `folder` does not hold yet, a shard at a time; an index is written after its arrays."""
    done = set(_rows_of(folder))
    groups: dict[tuple[int, int, int], list[Request]] = defaultdict(list)
    for image_id, labels in requests:
        if missing := tuple(label for label in labels if (image_id, label) not in done):
            view = draw.latents.view(image_id)
            groups[view.height, view.width, len(missing)].append((image_id, missing))
    progress.start(f"localize, t {draw.plan.t_min:g}-{draw.plan.t_max:g}", sum(map(len, groups.values())))
    for (_, _, labels_each), group in sorted(groups.items()):
        slots = 1 + labels_each + (draw.reference is not None)
        size = max(1, draw.batch_size // (draw.plan.draws * slots))
        for start in range(0, len(group), shard_images):
            shard = group[start : start + shard_images]
            rows = []
            for first in range(0, len(shard), size):
                chunk = shard[first : first + size]
                rows += draw(chunk)
                progress.advance(len(chunk))
            _write(folder, rows)
    progress.finish()


def _write(folder: Path, rows: Sequence[tuple[str, str, dict[str, np.ndarray]]]) -> None:
    name = hashlib.sha256("".join(f"{i}{label}" for i, label, _ in rows).encode()).hexdigest()[:16]
    write_arrays(folder / f"{name}.safetensors", {n: np.stack([maps[n] for _, _, maps in rows]) for n in rows[0][2]})
    columns = {
        "image_id": [r[0] for r in rows],
        "label": [r[1] for r in rows],
        "row": list(range(len(rows))),
    }
    write_table(folder / f"{name}.parquet", pa.table(columns, schema=INDEX))


def _rows_of(folder: Path) -> dict[tuple[str, str], tuple[str, int]]:
    """Return (shard, row) of what a folder holds."""
    found = {}
    for path in finished_shards(folder):
        for entry in pq.read_table(path, schema=INDEX).to_pylist():
            found[entry["image_id"], entry["label"]] = (path.stem, entry["row"])
    return found


def _read(folder: Path) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    rows = _rows_of(folder)
    shards: dict[str, dict[str, np.ndarray]] = {}
    for shard in sorted({shard for shard, _ in rows.values()}):
        with safe_open(folder / f"{shard}.safetensors", "np") as handle:
            shards[shard] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return {key: {name: array[row] for name, array in shards[shard].items()} for key, (shard, row) in rows.items()}


def _stacked(ranges: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([maps[name] for maps in ranges]) for name in ranges[0]}
