"""Fine-tune a checkpoint so that its denoiser knows the labels of a data set.

Latents are encoded once (latents.py). All randomness of a step (which images, noise, timesteps, dropped
labels) is a function of the seed and the step's number, so a resumed run repeats nothing and continues
exactly: a training state is the weights, their average, the optimizer's moments and the step. It is stored
as safetensors and JSON; nothing is pickled.

Labels move a denoising loss by less than a percent, so that a small model which minimises the loss alone learns them
slowly. With `finetune.contrast` an image is also denoised under another label, from the same noise, and its own label
must do better by a margin (`Finetuner._loss`). The null prompt takes no part in that: it stays the honest denoiser that
typicality is measured against.

Validation is the mean typicality of whole groups that are not trained on, how much the true label helps there, with
the same noise every time. It is what mining uses, and it falls when the model memorises. These groups choose the step
that is kept, so they are others than the held-out ones, which take part in nothing (`divided`). Contrast teaches labels
to move predictions by more than is right for images that were not trained on; the same groups say by how much less they
should, and scoring does so (calibration.py). Without contrast the score is left as published.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from typicality.config import FinetuneSettings, ScoreSettings
from typicality.errors import SettingsError
from typicality.model.average import Average
from typicality.model.calibration import best_label_scale, density_tilt, scaled_typicality
from typicality.model.checkpoint import Checkpoint, save_adapter, save_checkpoint
from typicality.model.denoiser import enough_memory, prompt_tokens, use_small_attention
from typicality.model.latents import LatentStore
from typicality.model.recipe import FULL_SIZE, MARGIN, default_steps, label_use_after, recipe_of, validation_interval
from typicality.model.training import WHOLE, Draws, Part, TrainingSet, shifted
from typicality.model.unet import predict
from typicality.model.validation import LabelEffects
from typicality.progress import SILENT, Progress
from typicality.store import remove, write_arrays, write_text

logger = logging.getLogger(__name__)

FOCUS = 0.85  # share of the training draws whose timestep lies in the range that scoring uses
SHARE = 8  # images of a step that are worth a worker of their own on a CPU
FEW = 8  # validation images; with fewer the label scale and the tilt say little
MEMORISED = 3.0  # warn when typicality on training images exceeds the held-out one so many times
TRAINING_RECORD = "training.json"


@dataclass(frozen=True)
class FinetuneResult:
    """What came of a fine-tuning.

    Attributes
    ----------
    steps, best_step : taken; and whose weights were kept
    label_scale : of these weights, see `Checkpoint`
    history : of validations
    warnings : for the report
    """

    steps: int
    best_step: int
    label_scale: float
    history: list[dict[str, float]]
    warnings: tuple[str, ...]
    images: int


class Finetuner:
    """One fine-tuning, or a part of one, resumable from `folder`.

    Parameters
    ----------
    checkpoint : trained in place
    folder : holds the training state while it runs
    score : gives the range of timesteps that matters
    device, dtype : where and in which precision the model will score. It is trained under autocast where that is
        bfloat16, and else in float32: float16 loses small gradients without a loss scale, which would be one more state
        to resume
    seed : of everything random
    part : what of it is done; all by default
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: TrainingSet,
        latents: LatentStore,
        settings: FinetuneSettings,
        score: ScoreSettings,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        part: Part = WHOLE,
    ) -> None:
        self.checkpoint, self.data, self.latents = checkpoint, data, latents
        self.settings, self.score, self.folder, self.seed = settings, score, folder, seed
        self.part = part
        self.device = device
        mixed = "bf16" if dtype == torch.bfloat16 else "no"
        AcceleratorState._reset_state()  # another precision may have been trained in this process before
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
        self.recipe = recipe_of(settings, checkpoint)
        self.train_text = settings.train_text_encoder
        unet, text = checkpoint.unet, checkpoint.text_encoder
        if self.recipe.lora:
            unet.requires_grad_(False)
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            unet.add_adapter(LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_rank, target_modules=targets))
            _reset_adapter(unet, seed)
        else:
            unet.requires_grad_(True)
        text.requires_grad_(self.train_text)
        unet.to(device)
        text.to(device)
        use_small_attention(unet, device)
        if checkpoint.parameters > FULL_SIZE:
            unet.enable_gradient_checkpointing()
        self.parameters = [p for p in [*unet.parameters(), *text.parameters()] if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._rate_groups(), lr=self.recipe.rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.average = Average(self.parameters, settings.ema)
        images = min(settings.micro_batch or settings.batch_size, settings.batch_size)
        threads = torch.get_num_threads()
        self.workers = max(1, min(threads, images // SHARE)) if device.type == "cpu" else 1
        self.threads = max(1, threads // self.workers)
        self.steps = settings.steps or default_steps(len(data.training), settings.batch_size)
        self.step, self.seconds, self.begun_at = 0, 0.0, 0
        self.best_step, self.best, self.best_weights = 0, -math.inf, ""
        self.validation_values: list[float] = []
        self.best_values: list[float] = []
        self.label_scale, self.best_label_scale = 1.0, 1.0
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.contrast = self.recipe.contrast if part.labelled and len(data.labels) > 1 else 0.0
        self.tokens = prompt_tokens(checkpoint.tokenizer, data.prompts.of_all(data.labels)).to(device)
        self.abar = checkpoint.scheduler.alphas_cumprod.float().to(device)
        self.velocity = checkpoint.scheduler.config.prediction_type == "v_prediction"
        self.frozen_states = None if self.train_text else self._states().detach()
        by_shape: dict[tuple[int, int], list[str]] = {}
        for image_id in data.training:
            view = latents.view(image_id)
            by_shape.setdefault((view.height, view.width), []).append(image_id)
        self.buckets = [sorted(ids) for _, ids in sorted(by_shape.items())]

    def _rate_groups(self) -> list[dict[str, Any]]:
        """The parameters in two groups with their multiples of the rate: cross-attention, and all others.

        Only cross-attention sees prompts. A base that already denoises well moves slowly where the label comes in.
        """
        multiple = self.recipe.cross_attention_rate
        crosses = {id(p) for name, p in self.checkpoint.unet.named_parameters() if ".attn2." in name}
        return [
            {"params": [p for p in self.parameters if id(p) in crosses], "multiple": multiple},
            {"params": [p for p in self.parameters if id(p) not in crosses], "multiple": 1.0},
        ]

    # ------------------------------------------------------------------------------------------ steps

    def _states(self) -> Tensor:
        return self.checkpoint.text_encoder(self.tokens).last_hidden_state

    def batch(self, step: int) -> tuple[list[str], np.random.Generator]:
        """Return the images of a step, all of one shape, and the step's generator.

        Each bucket of equal shapes is walked in shuffled passes; which bucket a step takes is drawn in
        proportion to its size.
        """
        rng = np.random.default_rng([self.seed, 17, step])
        sizes = np.array([len(b) for b in self.buckets])
        choice = int(np.random.default_rng([self.seed, 19, step]).choice(len(sizes), p=sizes / sizes.sum()))
        bucket = self.buckets[choice]
        start = step * self.settings.batch_size
        ids = []
        for position in range(start, start + self.settings.batch_size):
            epoch, place = divmod(position, len(bucket))
            ids.append(bucket[self._order(choice, epoch)[place]])
        return ids, rng

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        key = (bucket, epoch)
        if getattr(self, "_cached_order", (None, None))[0] != key:
            order = np.random.default_rng([self.seed, 23, bucket, epoch]).permutation(len(self.buckets[bucket]))
            self._cached_order = (key, order)
        return self._cached_order[1]

    def _learning_rate(self, progress: float) -> float:
        rate = self.recipe.rate
        begun, until = self.part.begun, self.part.until
        progress = max(0.0, progress - begun) / (until - begun)
        warm = min(1.0, progress / self.settings.warmup) if self.settings.warmup > 0 else 1.0
        if self.recipe.schedule == "constant":
            return rate * warm
        return rate * warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))) + 1e-3 * rate

    def _draw(self, ids: Sequence[str], rng: np.random.Generator) -> Draws:
        """Draw timestep, noise, prompt and the other label of every image of a micro-batch."""
        n = len(ids)
        z = self.latents.stack(ids)
        if self.settings.flip:
            for i in np.flatnonzero(rng.random(n) < 0.5).tolist():
                z[i] = self.latents.mirrored.get(ids[i])
        if reach := self.settings.shift:
            z = shifted(z, rng.integers(-reach, reach + 1, (n, 2)))
        z = z.to(self.device)
        position = {label: i + 1 for i, label in enumerate(self.data.labels)}
        own = [self.data.labels_of[i] for i in ids]
        prompts = [position[labels[int(rng.integers(len(labels)))]] for labels in own]
        dropout = self.settings.dropout if self.part.labelled else 1.0
        prompts = [0 if rng.random() < dropout else p for p in prompts]
        total = len(self.abar)
        focused = self.score.t_min + rng.random(n) * (self.score.t_max - self.score.t_min)
        share = np.where(rng.random(n) < FOCUS, focused, rng.random(n))
        t = torch.from_numpy(np.minimum((share * total).astype(np.int64), total - 1)).to(self.device)
        noise = torch.from_numpy(rng.standard_normal(tuple(z.shape), dtype=np.float32)).to(self.device)
        a = self.abar[t][:, None, None, None]
        target = a.sqrt() * noise - (1 - a).sqrt() * z if self.velocity else noise
        others = self._others(own, prompts, rng) if self.contrast else []
        return Draws(a.sqrt() * z + (1 - a).sqrt() * noise, t, target, prompts, others)

    def _loss(self, drawn: Draws) -> tuple[Tensor, Tensor]:
        """Return what is minimised on some images, and the mean squared error of the noise alone.

        For an image under its own label c, and another label c' that it does not have, drawn at random, with the same
        noise and timestep, the first is

            L(c) + contrast * m * softplus((L(c) - L(c')) / m),    m = MARGIN * L(c), not differentiated

        so that a label which already does better by much more than the margin has no further say. The null prompt is
        trained by its own loss only.
        """
        prompts, others = drawn.prompts, drawn.others
        with self.accelerator.autocast():
            states = self._states() if self.frozen_states is None else self.frozen_states
            hidden = states[torch.tensor([*prompts, *others], device=self.device)]
            prediction = self._predict(drawn.noised, drawn.t, hidden, states[0])
        losses = (prediction.float().unflatten(0, (-1, len(prompts))) - drawn.target).square().mean((2, 3, 4))
        loss = losses[0].mean()
        if not others:
            return loss, loss
        counts = torch.tensor([p > 0 and o > 0 for p, o in zip(prompts, others, strict=True)], device=self.device)
        margin = MARGIN * losses[0].detach()
        behind = margin * F.softplus((losses[0] - losses[1]) / margin)
        return loss + self.contrast * (behind * counts).mean(), loss

    def _predict(self, noisy: Tensor, t: Tensor, hidden: Tensor, null: Tensor) -> Tensor:
        """Call the UNet on every input under as many prompts as there are states in `hidden` for each."""
        return predict(self.checkpoint.unet, noisy, t, hidden, null, self.recipe.label_blocks)

    def _backward(self, drawn: Draws, weight: float) -> float:
        """Add the gradients of a micro-batch, and return its error, both times its weight.

        On a CPU every worker takes a share of the images, with cores of its own: two halves at once take less time than
        the whole with its kernels spread over two cores. The sum has a fixed order.
        """
        n = len(drawn.prompts)
        if (workers := min(self.workers, n)) < 2:
            minimised, error = self._loss(drawn)
            self.accelerator.backward(minimised * weight)
            return float(error.detach()) * weight

        def share(where: slice) -> tuple[float, tuple[Tensor | None, ...]]:
            part = drawn.part(where)
            minimised, noise_error = self._loss(part)
            own = weight * len(part.prompts) / n
            return float(noise_error.detach()) * own, torch.autograd.grad(
                minimised * own, self.parameters, allow_unused=True
            )

        bounds = [n * k // workers for k in range(workers + 1)]
        total = 0.0
        for part_error, gradients in self.pool.map(share, map(slice, bounds, bounds[1:])):
            total += part_error
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total

    def _others(self, own: Sequence[Sequence[str]], prompts: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Return for each image the prompt of a label that it does not have, or the null prompt where it has all.

        The list is empty where nothing can be contrasted: every image sees the null prompt, or has all labels.
        """
        others = []
        for labels in own:
            absent = [i + 1 for i, label in enumerate(self.data.labels) if label not in labels]
            others.append(absent[int(rng.integers(len(absent)))] if absent else 0)
        return others if any(p and o for p, o in zip(prompts, others, strict=True)) else []

    def train_step(self, progress: float) -> float:
        """Take one optimizer step and return the mean squared error of the noise."""
        ids, rng = self.batch(self.step)
        micro = self.settings.micro_batch or len(ids)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(progress) * group["multiple"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for start in range(0, len(ids), micro):
            part = ids[start : start + micro]
            with self._shared():
                loss += self._backward(self._draw(part, rng), len(part) / len(ids))
        if not math.isfinite(loss):
            raise SettingsError(
                f"fine-tuning diverged: the loss is {loss} at step {self.step}; lower finetune.rate "
                f"({self.recipe.rate:g} now)"
            )
        self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return loss

    # ------------------------------------------------------------------------------------- validation

    @property
    def effects(self) -> LabelEffects:
        """What labels do with the weights as they are."""
        size, score = self.settings.micro_batch or 32, self.score
        return LabelEffects(self._both, self.latents, self.abar, score.t_min, score.t_max, self.seed, size)

    def effect_of_labels(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) typicality of images under their first label and (n,) means of D^2, in one fixed order."""
        return self.effects.means(ids)

    @torch.no_grad()
    def _both(self, noisy: Tensor, t: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Predict the noise under the null prompt and under the images' first labels, float32."""
        states = self._states() if self.frozen_states is None else self.frozen_states
        position = {label: i + 1 for i, label in enumerate(self.data.labels)}
        own = torch.tensor([position[self.data.labels_of[i][0]] for i in ids], device=self.device)
        with self.accelerator.autocast():
            hidden = torch.cat([states[:1].expand(len(ids), -1, -1), states[own]])
            predicted = self._predict(noisy, t, hidden, states[0]).float()
        if self.velocity:
            a = self.abar[t][:, None, None, None]
            predicted = a.sqrt() * predicted + (1 - a).sqrt() * noisy.repeat(2, 1, 1, 1)
        null, label = predicted.unflatten(0, (2, -1))
        return null, label

    def validate(self) -> dict[str, float]:
        """Measure the averaged weights on validation images, which give the label scale, and on training images."""
        rng = np.random.default_rng([self.seed, 31])
        entry: dict[str, float] = {"step": self.step, "loss": float(np.mean(self.losses[-100:] or [math.nan]))}
        if not self.part.labelled:
            return entry
        self.average.swap()
        self.checkpoint.unet.eval()
        for name, ids in (("validation_typicality", self.data.validation), ("train_typicality", self.data.training)):
            if ids:
                chosen = rng.permutation(len(ids))[: self.settings.validation_images].tolist()
                with enough_memory("set finetune.micro_batch to less, 1 for instance"):
                    typicality, shift = self.effect_of_labels([ids[i] for i in chosen])
                if ids is self.data.validation:
                    self.label_scale = best_label_scale(typicality, shift) if self.contrast else 1.0
                    entry["label_scale"] = self.label_scale
                    self.validation_values = scaled_typicality(typicality, shift, self.label_scale).tolist()
                entry[name] = float(scaled_typicality(typicality, shift, self.label_scale).mean())
        self.checkpoint.unet.train()
        self.average.swap()
        return entry

    # ------------------------------------------------------------------------------------------- run

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Give every worker its share of the cores."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers, thread_name_prefix="finetune")

    def run(self, progress: Progress = SILENT) -> FinetuneResult:
        """Train to the end or until validation typicality stops rising; the best averaged weights stay."""
        if not self._load_state(self.folder) and self.part.start is not None:
            self._continue(self.part.start)
        self.checkpoint.unet.train()
        limit = self.settings.minutes * 60 if self.settings.minutes else None
        end = round(self.part.until * self.steps)
        progress.start(f"fine-tune ({self.part.name})" if self.part.name else "fine-tune", end)
        progress.advance(self.step)
        began = time.monotonic() - self.seconds
        finished = self._is_finished(limit) or self._is_out_of_patience()
        while not finished:
            elapsed = time.monotonic() - began
            share = elapsed / limit if limit else self.step / self.steps
            with enough_memory("set finetune.micro_batch to less than finetune.batch_size, 1 for instance"):
                loss = self.train_step(share)
            self.losses = [*self.losses[-99:], loss]
            self.seconds = time.monotonic() - began
            if limit:  # the number of steps follows from the time one takes
                self.steps = max(self.step, round(self.step * limit / self.seconds))
                progress.expect(round(self.part.until * self.steps))
            progress.advance(1, f"loss {np.mean(self.losses):.4f}, {self.step / max(self.seconds, 1e-6):.2f} steps/s")
            finished = self._is_finished(limit)
            if finished or self.step % validation_interval(self.settings, self.steps) == 0:
                finished = self._checkpoint() or finished
        progress.finish()
        self._restore_best()
        return FinetuneResult(
            self.step, self.best_step, self.best_label_scale, self.history, tuple(self._warnings()),
            len(self.data.training),
        )  # fmt: skip

    def _is_finished(self, limit: float | None) -> bool:
        if self.step == self.begun_at:  # what went before may have used up the budget: one step is taken anyway
            return False
        if limit:
            return self.seconds >= self.part.until * limit
        return self.step >= max(1, round(self.part.until * self.steps))

    def _checkpoint(self) -> bool:
        """Validate, keep the best weights, save the state; return whether patience has run out."""
        entry = self.validate()
        entry["seconds"] = round(self.seconds, 1)
        self.history.append(entry)
        logger.info("validation %s", entry)
        if not self._is_worse(self.validation_values):
            self.best, self.best_step = entry.get("validation_typicality", float(self.step)), self.step
            self.best_values, self.best_label_scale = self.validation_values, self.label_scale
            self.best_weights = f"best-{self.step}"
            self._save_arrays(self.best_weights, self.average.shadow)
        self._save_state()
        return self._is_out_of_patience()

    def _is_worse(self, values: Sequence[float]) -> bool:
        """Whether validation typicality has fallen since the best step by more than chance.

        The same images and noise are compared, and a fall within one standard error of the paired difference
        does not stop the later weights: a few dozen images would often prefer a step that is merely lucky.
        """
        if len(self.best_values) < 2 or len(values) != len(self.best_values):
            return False
        gain = np.subtract(values, self.best_values)
        return bool(gain.mean() < -gain.std(ddof=1) / math.sqrt(len(gain)))

    def _is_out_of_patience(self) -> bool:
        return self.step - self.best_step >= self.settings.patience * validation_interval(self.settings, self.steps)

    def _warnings(self) -> list[str]:
        return [*self._of_scale(), *self._of_validation()]

    def _of_scale(self) -> list[str]:
        if not self.contrast or len(self.best_values) >= FEW:
            return []
        number = len(self.best_values)
        told = f"were only {number} images" if number > 1 else "was only one image" if number else "was no image"
        return [
            f"There {told} that the model was not trained on to measure by how much a label should move its "
            "predictions (the label scale), so typicality may be too high or too low throughout; set "
            "finetune.held_out to more, use more groups, or set finetune.contrast=0."
        ]

    def _of_validation(self) -> list[str]:
        kept = [e for e in self.history if e["step"] == self.best_step]
        if not kept or "validation_typicality" not in kept[0]:
            return []
        validation, training = kept[0]["validation_typicality"], kept[0]["train_typicality"]
        n = len(self.best_values)
        error = float(np.std(self.best_values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
        if validation <= error:
            return [
                f"The labels hardly help on images that were not trained on: their typicality is {validation:.2g}, "
                f"with a standard error of {error:.2g}. What the report shows may be chance; try more images, or "
                "longer fine-tuning."
            ]
        if training > MEMORISED * validation:
            return [
                f"The model has partly memorised its training images: typicality is {training:.2g} on them and "
                f"{validation:.2g} on others. Scores of training images are too high; fine-tune for fewer steps."
            ]
        return []

    # ----------------------------------------------------------------------------------------- state

    def _save_arrays(self, name: str, tensors: Sequence[Tensor]) -> None:
        arrays = {f"{i:05d}": t.detach().float().cpu().numpy() for i, t in enumerate(tensors)}
        write_arrays(self.folder / f"{name}.safetensors", arrays)

    def _save_state(self) -> None:
        """Write the tensors under the step's name, then the record that names them, then drop the older ones."""
        name = f"state-{self.step}"
        moments = [
            self.optimizer.state[p][key] for p in self.parameters for key in ("exp_avg", "exp_avg_sq")
        ]  # fmt: skip
        self._save_arrays(name, [*self.parameters, *self.average.shadow, *moments])
        record = {
            "state": name, "step": self.step, "begun_at": self.begun_at, "steps": self.steps, "seconds": self.seconds,
            "best": self.best, "best_step": self.best_step, "best_values": self.best_values,
            "best_weights": self.best_weights, "best_label_scale": self.best_label_scale,
            "history": self.history, "losses": self.losses,
        }  # fmt: skip
        write_text(self.folder / "state.json", json.dumps(record))
        for old in self.folder.glob("*.safetensors"):
            if old.stem not in (name, self.best_weights):
                old.unlink()

    @torch.no_grad()
    def _load_state(self, folder: Path) -> bool:
        """Take over the state in a folder; return whether there is one."""
        path = folder / "state.json"
        if not path.exists():
            return False
        record = json.loads(path.read_text())
        tensors = _read_arrays(folder / f"{record['state']}.safetensors")
        n = len(self.parameters)
        for parameter, value in zip(self.parameters, tensors[:n], strict=True):
            parameter.copy_(value)
        for average, value in zip(self.average.shadow, tensors[n : 2 * n], strict=True):
            average.copy_(value)
        for i, parameter in enumerate(self.parameters):
            first, second = tensors[2 * n + 2 * i], tensors[2 * n + 2 * i + 1]
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(record["step"]), device=parameter.device),  # a fused step reads it there
                "exp_avg": first.to(parameter.device).clone(),
                "exp_avg_sq": second.to(parameter.device).clone(),
            }
        self.step, self.seconds = record["step"], record["seconds"]
        self.begun_at = record.get("begun_at", 0)
        self.best, self.best_step, self.best_values = record["best"], record["best_step"], record["best_values"]
        self.best_weights = record.get("best_weights", "best")  # the name of earlier versions
        self.best_label_scale = record.get("best_label_scale", 1.0)
        self.steps = record["steps"]
        self.history, self.losses = record["history"], record["losses"]
        return True

    def _continue(self, folder: Path) -> None:
        """Go on from where another part ended: its weights, optimizer, step and clock, but not its validations."""
        if not self._load_state(folder):
            raise FileNotFoundError(f"{folder} holds no training state to continue from")
        self.begun_at = self.best_step = self.step
        self.best, self.history, self.losses = -math.inf, [], []
        self.best_values = []

    @torch.no_grad()
    def _restore_best(self) -> None:
        best = _read_arrays(self.folder / f"{self.best_weights}.safetensors")
        for parameter, value in zip(self.parameters, best, strict=True):
            parameter.copy_(value)
        self.checkpoint.unet.eval()
        use = label_use_after(self.settings, self.checkpoint, self.data.prompts.null)
        self.checkpoint.label_use = replace(use, scale=self.best_label_scale, tilt=self._tilt())

    def _tilt(self) -> float:
        """Return where among the timesteps these weights' scores are best drawn, see `density_tilt`."""
        if not self.part.labelled or len(self.data.validation) < FEW:
            return 0.0
        with enough_memory("set finetune.micro_batch to less, 1 for instance"):
            return density_tilt(self.effects.spread(self.data.validation))

    def entry(self, result: FinetuneResult, total: int, warnings: Sequence[str] = ()) -> dict[str, Any]:
        """Return what a run records of this fine-tuning.

        Parameters
        ----------
        total : images of the data set; those that were not shown are held out
        warnings : beside those of the result
        """
        validation = len(self.data.validation)
        return {
            "steps": result.steps, "best_step": result.best_step, "images": result.images, "validation": validation,
            "held_out": total - result.images - validation, "method": self.recipe.method,
            "text_encoder": self.train_text, "contrast": self.contrast, "label_scale": result.label_scale,
            "label_blocks": self.recipe.label_blocks, "tilt": self.checkpoint.label_use.tilt,
            "unet_evaluations": (result.steps - self.begun_at) * self.settings.batch_size * (2 if self.contrast else 1),
            "history": result.history, "warnings": [*result.warnings, *warnings],
        }  # fmt: skip

    def save(self, folder: Path, card: str, record: Mapping[str, Any] | None = None, keep_state: bool = False) -> None:
        """Write the result: a diffusers folder, or a LoRA adapter that names its base, a model card and a record."""
        temporary = folder.with_name(folder.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if self.recipe.lora:
            save_adapter(self.checkpoint, temporary, text_encoder=self.train_text)
        else:
            save_checkpoint(self.checkpoint, temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if record is not None:
            (temporary / TRAINING_RECORD).write_text(json.dumps(record), encoding="utf-8")
        remove(folder)
        temporary.rename(folder)
        if not keep_state:
            shutil.rmtree(self.folder, ignore_errors=True)


def _read_arrays(path: Path) -> list[Tensor]:
    return [t for _, t in sorted(load_file(path).items())]


def _reset_adapter(unet: nn.Module, seed: int) -> None:
    """Draw the adapter's first factors from the run's seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        if "lora_A" in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            parameter.data.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
