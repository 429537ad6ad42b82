"""Try ways of fine-tuning the bundled base beside one another on one GPU, in minutes.

    python reports/benchmarks/finetune_sweep.py SWEEP.jsonl [STEPS]

Every training is a CUDA graph on a stream of its own, and several run at once: steps of 16 small latents leave most of
a GPU idle. (To try the script without a GPU, give STEPS, a few: two choices are then trained, and judged on 16 images.)
The loss is that of typicality/model/finetune.py, the rest is what a search needs. Nothing that is reported elsewhere is
looked at: labels are told apart on a tuning split of the demo's training groups (whose subjects, without their years,
are in the pretraining corpus), and motifs are planted with other seeds than `evaluate planted` has.

A line of the result holds the choices, and either the accuracy on the tuning split, or the precision of the best box of
the first 100 images a label and the lift of pixel average precision, on the half of the images that was not trained on,
by typicality (`null`), by typicality minus that of the other label (`other`) and by the denoising error (`error`).
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from typicality.config import ModelSettings, config_of, resolve
from typicality.dataset import load_dataset, prepare
from typicality.dataset.split import fold_of, unit_hash
from typicality.evaluation.planting import Planting, choose_images, read_truth, write_planted
from typicality.metrics import average_precision
from typicality.model.checkpoint import Checkpoint, load_checkpoint
from typicality.model.denoiser import prompt_tokens
from typicality.model.unet import predict

logger = logging.getLogger("sweep")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
FOCUS, RANGE, DRAWS = 0.85, (0.1, 0.7), 8


@dataclass(frozen=True)
class Choice:
    """One way of fine-tuning; the defaults are those of the base, but for what a search leaves out.

    Attributes
    ----------
    steps, batch, rate, multiple : of cross-attention's rate
    contrast, margin : weight, and share of the loss
    ramp : share of the steps over which contrast rises from zero
    shift : latents are moved by up to so many cells
    antithetic : half as many images, each with a noise and its negative
    cross_only : contrast teaches cross-attention alone
    shared : steps under the null prompt before, as with `--folds`
    """

    name: str
    steps: int = 420
    batch: int = 16
    rate: float = 6e-4
    multiple: float = 2.0
    contrast: float = 8.0
    margin: float = 0.03
    ramp: float = 0.0
    shift: int = 0
    antithetic: bool = False
    cross_only: bool = False
    shared: int = 0


@dataclass(frozen=True)
class Task:
    """Latents (n, c, h, w) and labels (n,), prompt states (labels + 1, ...), and which images are taught and judged."""

    latents: Tensor
    labels: Tensor
    states: Tensor
    training: np.ndarray
    judged: np.ndarray


class Training:
    """One training: three eager steps, then a graph that is replayed."""

    def __init__(self, checkpoint: Checkpoint, task: Task, choice: Choice, seed: int = 0) -> None:
        self.task, self.choice = task, choice
        self.unet = copy.deepcopy(checkpoint.unet).to(DEVICE).train().requires_grad_(True)
        self.alphas = checkpoint.scheduler.alphas_cumprod.float().to(DEVICE)
        named = list(self.unet.named_parameters())
        self.cross = [p for name, p in named if ".attn2." in name]
        self.parameters = self.cross + [p for name, p in named if ".attn2." not in name]
        self.rates = [torch.tensor(choice.rate, device=DEVICE) for _ in range(2)]
        groups = [
            {"params": part, "lr": rate}
            for part, rate in zip((self.cross, self.parameters[len(self.cross) :]), self.rates, strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, betas=(0.9, 0.99), capturable=CUDA, fused=True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.stream, self.graph, self.step = torch.cuda.Stream() if CUDA else None, None, 0
        self.generator = torch.Generator(DEVICE).manual_seed(1000 + seed)
        self.plan = self._plan(np.random.default_rng([seed, 5]))
        self.z = torch.zeros(choice.batch, *task.latents.shape[1:], device=DEVICE)
        self.noise = torch.zeros_like(self.z)
        self.now = {name: torch.zeros_like(values[0]) for name, values in self.plan.items()}

    @property
    def steps(self) -> int:
        return self.choice.shared + self.choice.steps

    def _plan(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Everything random of all steps but the noise."""
        choice, task, steps = self.choice, self.task, self.steps
        n = choice.batch // 2 if choice.antithetic else choice.batch
        pools = [np.arange(len(task.labels))] * choice.shared + [task.training] * choice.steps
        index = np.stack([rng.choice(pool, n, replace=False) for pool in pools])
        labels, number = task.labels.cpu().numpy()[index], len(task.states) - 1
        own = np.where(rng.random(index.shape) < 0.1, 0, labels + 1)
        own[: choice.shared] = 0
        other = (labels + rng.integers(1, number, index.shape)) % number + 1
        focused = RANGE[0] + rng.random(index.shape) * (RANGE[1] - RANGE[0])
        share = np.where(rng.random(index.shape) < FOCUS, focused, rng.random(index.shape))
        offsets = rng.integers(-choice.shift, choice.shift + 1, (2, steps, n))
        drawn = {"index": index, "own": own, "other": other, "t": (share * 1000).astype(np.int64)}
        drawn |= {"down": offsets[0], "right": offsets[1]}
        if choice.antithetic:
            drawn = {name: np.concatenate([values, values], 1) for name, values in drawn.items()}
        parts = [np.arange(k) / k for k in (choice.shared, choice.steps) if k]
        progress = np.concatenate(parts)
        rate = choice.rate * (np.minimum(1, progress / 0.05) * (0.5 + 0.5 * np.cos(np.pi * progress)) + 1e-3)
        labelled = np.arange(steps) >= choice.shared
        weight = choice.contrast * labelled * (np.minimum(1, progress / choice.ramp) if choice.ramp else 1)
        decay = np.minimum(0.99, (2 + np.arange(steps)) / (11 + np.arange(steps)))
        drawn |= {"rate": rate, "cross_rate": rate * np.where(labelled, choice.multiple, 1), "weight": weight}
        drawn |= {"learned": 1 - decay}
        return {
            name: torch.from_numpy(values).to(DEVICE, torch.long if values.dtype == np.int64 else torch.float32)
            for name, values in drawn.items()
        }

    def _feed(self) -> None:
        for name, values in self.plan.items():
            self.now[name].copy_(values[self.step])
        z = self.task.latents[self.now["index"]].float()
        n, _, height, width = z.shape
        rows = (torch.arange(height, device=DEVICE) - self.now["down"][:, None]).clamp(0, height - 1)
        columns = (torch.arange(width, device=DEVICE) - self.now["right"][:, None]).clamp(0, width - 1)
        every = torch.arange(n, device=DEVICE)[:, None, None]
        self.z.copy_(z[every, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2))
        self.noise.normal_(generator=self.generator)
        if self.choice.antithetic:
            self.noise[n // 2 :] = -self.noise[: n // 2]
        self.rates[0].copy_(self.now["cross_rate"])
        self.rates[1].copy_(self.now["rate"])

    def _compute(self) -> None:
        choice, now = self.choice, self.now
        a = self.alphas[now["t"]][:, None, None, None]
        noised = a.sqrt() * self.z + (1 - a).sqrt() * self.noise
        prompts = [now["own"], now["other"]] if choice.contrast else [now["own"]]
        predicted = predict(self.unet, noised, now["t"], self.task.states[torch.cat(prompts)], len(prompts))
        losses = (predicted.unflatten(0, (len(prompts), -1)) - self.noise).square().mean((2, 3, 4))
        loss = losses[0].mean()
        behind = torch.zeros((), device=DEVICE)
        if choice.contrast:
            margin = choice.margin * losses[0].detach()
            pushed = margin * F.softplus((losses[0] - losses[1]) / margin) * (now["own"] > 0)
            behind = now["weight"] * pushed.mean()
        if choice.cross_only and choice.contrast:
            gradients = list(torch.autograd.grad(loss, self.parameters, retain_graph=True))
            for i, gradient in enumerate(torch.autograd.grad(behind, self.cross)):
                gradients[i] = gradients[i] + gradient
        else:
            gradients = list(torch.autograd.grad(loss + behind, self.parameters))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            change = torch._foreach_sub([p.detach() for p in self.parameters], self.average)
            torch._foreach_mul_(change, now["learned"])
            torch._foreach_add_(self.average, change)

    def advance(self) -> bool:
        """Take one step; return whether there was one left."""
        if self.step == self.steps:
            return False
        with torch.cuda.stream(self.stream):  # of no effect without a GPU
            self._feed()
            if self.graph is None:
                self._compute()
            else:
                self.graph.replay()
        self.step += 1
        if CUDA and self.step == 3:
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._compute()
        return True

    @torch.no_grad()
    def finish(self) -> None:
        """Take the averaged weights, and free the graph."""
        if CUDA:
            torch.cuda.synchronize()
        self.graph = None
        for parameter, value in zip(self.parameters, self.average, strict=True):
            parameter.copy_(value)
        self.unet.eval()


@torch.no_grad()
def maps_of(training: Training, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Return L(null) - L(label) of every label (n, labels, h, w) and L(null) (n, h, w) of the judged images."""
    task, gains, nulls = training.task, [], []
    prompts = len(task.states)
    for start in range(0, len(task.judged), 128):
        z = task.latents[task.judged[start : start + 128]].float()
        n = len(z)
        generator = torch.Generator(DEVICE).manual_seed(seed + start)
        gain, null = torch.zeros(prompts - 1, *z[:, 0].shape, device=DEVICE), torch.zeros_like(z[:, 0])
        for pair in range(DRAWS // 2):
            share = (pair + torch.rand(n, generator=generator, device=DEVICE)) / (DRAWS // 2)
            t = ((RANGE[0] + share * (RANGE[1] - RANGE[0])) * 1000).long()
            eps = torch.randn(z.shape, generator=generator, device=DEVICE)
            a = training.alphas[t][:, None, None, None]
            for noise in (eps, -eps):
                hidden = task.states[:, None].expand(-1, n, -1, -1).flatten(0, 1)
                noised = a.sqrt() * z + (1 - a).sqrt() * noise
                predicted = predict(training.unet, noised, t, hidden, prompts).unflatten(0, (prompts, n))
                losses = (predicted - noise).square().mean(2)
                gain += (losses[:1] - losses[1:]) / DRAWS
                null += losses[0] / DRAWS
        gains.append(gain.transpose(0, 1))
        nulls.append(null)
    return torch.cat(gains), torch.cat(nulls)


# ---------------------------------------------------------------------------------------------- tasks


@torch.no_grad()
def encoded(checkpoint: Checkpoint, pixels: Sequence[np.ndarray]) -> Tensor:
    images = torch.from_numpy(np.stack(pixels))
    return torch.cat([checkpoint.vae.encode(part.to(DEVICE)).latent_dist.mean.half() for part in images.split(256)])


@torch.no_grad()
def states_of(checkpoint: Checkpoint, labels: Sequence[str]) -> Tensor:
    prompts = ["noto emoji", *(f"noto emoji, {label}" for label in labels)]
    return checkpoint.text_encoder(prompt_tokens(checkpoint.tokenizer, prompts).to(DEVICE)).last_hidden_state.float()


def emoji(checkpoint: Checkpoint) -> tuple[Task, Tensor]:
    """The demo's task on its training groups, a fifth of which judges, and (n, labels) what counts as right."""
    dataset = load_dataset(resolve(config_of("emoji"), {"dataset": {"source": "emoji", "label": "year"}}).dataset)
    images, _ = dataset.held_out()
    judged = np.array([unit_hash(i.group, "sweep") < 0.2 for i in images])
    labels = torch.tensor([dataset.labels.index(i.labels[0]) for i in images], device=DEVICE)
    right = torch.tensor([[label in i.labels for label in dataset.labels] for i in images], device=DEVICE)
    latents = encoded(checkpoint, [prepare(dataset.open(i), 64, 16, 2.0)[0] for i in images])
    task = Task(latents, labels, states_of(checkpoint, dataset.labels), np.flatnonzero(~judged), np.flatnonzero(judged))
    return task, right


@dataclass(frozen=True)
class Planted:
    """A task with (n, h, w) truth: the cells of an image that a motif of its label mostly covers."""

    task: Task
    truth: np.ndarray


def planted(checkpoint: Checkpoint, prevalence: float, seed: int) -> Planted:
    settings = resolve(config_of("emoji"), {"dataset": {"source": "emoji", "label": "year"}}).dataset
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "planted"
        write_planted(
            folder, choose_images(settings, 2000, seed), Planting(prevalence=prevalence), seed, max_aspect=2.0
        )
        boxes = read_truth(folder / "metadata.csv")
        with (folder / "metadata.csv").open() as table:
            rows = sorted(csv.DictReader(table), key=lambda row: row["file_name"])
        pixels, truth = [], np.zeros((len(rows), 16, 16), bool)
        for i, row in enumerate(rows):
            image = Image.open(folder / row["file_name"]).convert("RGB")
            pixels.append(prepare(image, 64, 16, 2.0)[0])
            covered = np.zeros((64, 64))
            for x0, y0, x1, y1 in boxes[row["file_name"]].planted:
                sx, sy = 64 / image.width, 64 / image.height
                covered[int(y0 * sy) : int(y1 * sy), int(x0 * sx) : int(x1 * sx)] = 1
            truth[i] = covered.reshape(16, 4, 16, 4).mean((1, 3)) > 0.5
    names = sorted({row["label"] for row in rows})
    labels = torch.tensor([names.index(row["label"]) for row in rows], device=DEVICE)
    judged = np.array([fold_of(row["group"], 2, seed) == 0 for row in rows])
    latents, states = encoded(checkpoint, pixels), states_of(checkpoint, names)
    return Planted(Task(latents, labels, states, np.flatnonzero(~judged), np.flatnonzero(judged)), truth)


def judge_labels(training: Training, right: Tensor) -> dict[str, float]:
    gains, null = maps_of(training)
    best = gains.mean((2, 3)).argmax(1)
    rows = torch.from_numpy(training.task.judged).to(DEVICE)
    return {"accuracy": round(float(right[rows, best].float().mean()), 4), "null_loss": round(float(null.mean()), 5)}


def judge_planted(training: Training, truth: np.ndarray) -> dict[str, float]:
    gains, null = maps_of(training)
    task = training.task
    labels = task.labels[task.judged]
    rows = torch.arange(len(labels), device=DEVICE)
    own, other = gains[rows, labels], gains[rows, 1 - labels]
    found = {"null_loss": round(float(null.mean()), 5)}
    for name, scores in (("null", own), ("other", own - other), ("error", null)):
        boxes = F.avg_pool2d(scores[:, None], 4, 1)[:, 0]
        best, place = (v.cpu().numpy() for v in boxes.flatten(1).max(1))
        smooth = F.avg_pool2d(F.pad(scores[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0].cpu().numpy()
        precision, lifts = [], []
        for label in (0, 1):
            mine = np.flatnonzero(labels.cpu().numpy() == label)
            top = mine[np.argsort(-best[mine], kind="stable")[:100]]
            hits = 0
            for i in top:
                y, x = divmod(int(place[i]), boxes.shape[2])
                hits += truth[task.judged[i], y : y + 4, x : x + 4].sum() >= 6  # half of a motif
            precision.append(hits / len(top))
            marked = truth[task.judged[mine]]
            lifts.append(average_precision(smooth[mine].ravel(), marked.ravel()) / marked.mean())
        found |= {f"precision_{name}": round(float(np.mean(precision)), 3), f"lift_{name}": round(np.mean(lifts), 2)}
    return found


def trained(checkpoint: Checkpoint, task: Task, choices: Sequence[Choice], steps: int | None) -> Iterator[Training]:
    """Train all at once, a step of each in turn; with `steps` only two, for so long, to be judged on 16 images."""
    if steps is not None:
        choices = [replace(c, steps=steps, shared=min(steps, c.shared)) for c in choices[:2]]
        task = replace(task, judged=task.judged[:16])
    trainings = [Training(checkpoint, task, choice) for choice in choices]
    while sum(training.advance() for training in trainings):
        if CUDA and trainings[0].step % 50 == 0:
            torch.cuda.synchronize()
    for training in trainings:
        training.finish()
        yield training


OLD = {"multiple": 12.0, "margin": 0.01}
LABELS = [
    Choice("as before", 1400, **OLD),
    Choice("no contrast, batches of 32", 1400, batch=32, multiple=12.0, contrast=0.0),
    Choice("multiple 4", 1400, multiple=4.0, margin=0.01),
    Choice("multiple 2", 1400, margin=0.01),
    Choice("multiple 4, margin 0.03", 1400, multiple=4.0),
    Choice("multiple 2, margin 0.03", 1400),
    Choice("rate 3e-4, multiple 8, margin 0.03", 1400, rate=3e-4, multiple=8.0),
    Choice("contrast 32", 1400, contrast=32.0, **OLD),
    Choice("antithetic", 1400, antithetic=True, **OLD),
    Choice("cross-attention alone contrasted", 1400, cross_only=True, **OLD),
]
MOTIFS = [
    Choice("as before", shared=280, **OLD),
    Choice("no contrast, batches of 32", batch=32, contrast=0.0, shared=280, multiple=12.0),
    Choice("contrast rises over half", ramp=0.5, shared=280, **OLD),
    Choice("antithetic", antithetic=True, shared=280, **OLD),
    Choice("cross-attention alone contrasted", cross_only=True, shared=280, **OLD),
    Choice("moved by 2 cells", shift=2, shared=280, multiple=4.0, margin=0.01),
    Choice("multiple 4", shared=280, multiple=4.0, margin=0.01),
    Choice("multiple 4, margin 0.03", shared=280, multiple=4.0),
    Choice("multiple 2, margin 0.03", shared=280),
    Choice("rate 3e-4, multiple 4, margin 0.03", shared=280, rate=3e-4, multiple=4.0),
]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    checkpoint = load_checkpoint(ModelSettings(name="base"))
    checkpoint.vae.to(DEVICE)
    checkpoint.text_encoder.to(DEVICE)
    task, right = emoji(checkpoint)
    rows: list[dict] = []
    for training in trained(checkpoint, task, LABELS, steps):
        rows.append({"task": "years"} | asdict(training.choice) | judge_labels(training, right))
        logger.info("%s", rows[-1])
    for seed in (1, 2):
        motifs = planted(checkpoint, 0.2, seed)
        for training in trained(checkpoint, motifs.task, MOTIFS, steps):
            found = judge_planted(training, motifs.truth)
            rows.append({"task": "motifs in 20%", "seed": seed} | asdict(training.choice) | found)
            logger.info("%s", rows[-1])
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
