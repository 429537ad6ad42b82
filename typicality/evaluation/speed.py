"""The speed benchmark: scoring from files to shards against the bare UNet and against the machine, in one process.

Ratios are the result, not seconds. What is compared is repeated in turn (A B C A B C ...) and the median of the ratios
within a turn is taken, since the speed of a shared machine varies within minutes.

The bare UNet is diffusers' own, called in a loop on tensors that are ready, in the batch size and with the attention
that are fastest here; nothing is shared between prompts, nothing is read, reduced or written. Ours makes as many
predictions, of a model that takes labels as `mine` with the same settings would (`finetune.label_blocks`), and shares
what it can; with the label in every block, as published, next to nothing can be shared, and that is measured beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from typicality.config import Settings, resolve
from typicality.dataset import LabelledImages, load_dataset
from typicality.dataset.split import unit_hash
from typicality.errors import DeviceMemoryError
from typicality.mining.boxes import box_means
from typicality.mining.clusters import cluster_elements
from typicality.mining.patches import PatchSelection, patch_side, top_patches
from typicality.model.calibration import LabelUse
from typicality.model.checkpoint import load_checkpoint
from typicality.model.denoiser import DTYPES, Denoiser, cells_at_once, enough_memory
from typicality.model.probe import chosen_engine, release, settle, timed
from typicality.model.recipe import label_use_after, sharing_of
from typicality.passes import scorer
from typicality.pipeline import FIRST_PASS, ensure_latents, feature_extractor
from typicality.progress import SILENT, Progress
from typicality.records import ModelView, Patch, ScoreMap
from typicality.run import Run
from typicality.scoring.estimator import box_mean, dyadic_sides
from typicality.scoring.scorer import own_label_jobs
from typicality.scoring.shards import ScoreReader
from typicality.store import RunDirectory

DRAWS = 8
TURNS = 3
BUDGET = 90.0
"""Seconds for the turns; the number of images follows from it where none is asked for."""
FP32_SHARE = 4  # the float32 loop takes a quarter of the evaluations: it is slow, and only its rate counts
MAPS = (1_000, 10_000, 100_000)
MAPS_BUDGET = 45.0
PER_IMAGE, PER_LABEL = 5, 1000
CELLS, MAP_LABELS, DISTINCT = 64, 10, 64


def bench(settings: Settings, images: int | None = None, progress: Progress = SILENT) -> dict[str, Any]:
    """Measure this machine with the weights as they are, without fine-tuning; takes about three minutes.

    Parameters
    ----------
    settings : data set, model, device and precision; the embedded emoji and the bundled base by default
    images : number of images; by default as many as the time allows, 16 to 256

    Returns
    -------
    pipeline_over_bare_unet : bare seconds / ours for as many predictions in the same precision
    ours_over_fp32_eager : bare float32 seconds / ours
    label_blocks : so many decoder blocks see the label, after fine-tuning by these settings; 0: all blocks
    all_blocks : both ratios where all blocks see it, None where they do
    rank_correlation_bf16_fp32 : Spearman's, of the scores of all patches from the same noise (None on float32 alone)
    matmul_share : of the machine's peak rate of matrix products, in float32 or our precision, whichever is faster,
        that our scoring reaches, by counted FLOPs of the UNet, what is shared counted once
    mining : seconds of one core for patches and clusters, seconds an image for features
    """
    dataset = load_dataset(settings.dataset)
    with tempfile.TemporaryDirectory(prefix="typicality-bench-") as folder:
        return _Bench(settings, dataset, Path(folder), progress).run(images)


def as_measured(settings: Settings) -> Settings:
    """Return the settings of the runs that are timed: nothing is fine-tuned, and every image gets as many draws."""
    return resolve(settings.model_dump(), {"finetune": {"enabled": False}, "score": {"protocol": "uniform"}})


class _Bench:
    def __init__(self, settings: Settings, dataset: LabelledImages, folder: Path, progress: Progress) -> None:
        self.finetune = settings.finetune
        self.settings = as_measured(settings)
        self.folder, self.progress = folder, progress
        self.order = sorted(dataset, key=lambda image: unit_hash(image.image_id, "bench"))
        self.dataset = dataset
        self.count = 0

    def open_run(self, dataset: LabelledImages, **model: Any) -> Run:
        """A run in a directory of its own, so that nothing is reused."""
        self.count += 1
        settings = self.settings.model_copy(update={"model": self.settings.model.model_copy(update=model)})
        return Run(settings, dataset, RunDirectory(self.folder / f"run-{self.count}"), SILENT)

    def first(self, n: int) -> LabelledImages:
        return replace(self.dataset, images=tuple(self.order[:n]))

    def run(self, images: int | None) -> dict[str, Any]:
        few = self.first(16)
        loaded = self.open_run(few)
        base = loaded.base
        use = label_use_after(self.finetune, base, loaded.prompts.null)
        # an engine is chosen as for a large data set
        engine = chosen_engine(self.settings.model, loaded.device, loaded.dtype, base, use)
        self.settings = resolve(self.settings.model_dump(), {"model": {"engine": engine}})
        run = self.ready(few, use)
        ours = {"ours": run} | ({"all_blocks": self.ready(few, LabelUse())} if use.blocks else {})
        bare, fp32 = BareUNet(run, run.dtype), BareUNet(run, torch.float32)
        if images is None:
            seconds = self.turn(few, ours, bare, fp32)
            once = (sum(seconds.values()) - seconds["fp32_eager"] * (1 - 1 / FP32_SHARE)) / len(few)
            images = int(min(256, max(16, BUDGET / TURNS / once)))
        dataset = self.first(images)
        turns = []
        self.progress.start("bench", TURNS)
        for _ in range(TURNS):
            turns.append(self.turn(dataset, ours, bare, fp32))
            self.progress.advance()
        self.progress.finish()

        def over(loop: str, kind: str) -> float:
            return statistics.median(seconds[loop] / seconds[kind] for seconds in turns)

        typical = {name: statistics.median(seconds[name] for seconds in turns) for name in turns[0]}
        ratios = {
            kind: {"pipeline_over_bare_unet": over("bare", kind), "ours_over_fp32_eager": over("fp32_eager", kind)}
            for kind in ours
        }
        evaluations = predictions_of(dataset)
        peaks = {name: matmul_flops(DTYPES[name], run.device) for name in ("fp32", name_of(run.dtype))}
        flops = bare.flops()
        done = evaluations - sharing_of(self.finetune, base) * (evaluations - len(dataset) * DRAWS)
        return {
            **ratios["ours"],
            "rank_correlation_bf16_fp32": self.rank_correlation(self.first(min(images, 32)), run.dtype),
            "matmul_share": flops * done / typical["ours"] / max(peaks.values()),
            "label_blocks": use.blocks, "all_blocks": ratios.get("all_blocks"),
            "images": images, "draws": DRAWS, "evaluations": evaluations, "turns": TURNS,
            "model": run.base.title, "device": str(run.device), "dtype": name_of(run.dtype),
            "engine": "openvino" if run.compiled_shapes else "torch", "threads": torch.get_num_threads(),
            "milliseconds_an_evaluation": {name: 1000 * t / evaluations for name, t in typical.items()},
            "bare_unet": {"batch": bare.batch, "attention": bare.attention, "gflop_an_evaluation": flops / 1e9},
            "matmul_tflops": {name: peak / 1e12 for name, peak in peaks.items()},
            "mining": self.mining(run),
        }  # fmt: skip

    def ready(self, dataset: LabelledImages, use: LabelUse) -> Run:
        """A run whose model takes labels so, loaded, and compiled where it is to be."""
        run = self.open_run(dataset)
        run.base.label_use = use
        self.pipeline(run)()
        return run

    def turn(self, dataset: LabelledImages, ours: dict[str, Run], bare: BareUNet, fp32: BareUNet) -> dict[str, float]:
        """Seconds of our pipeline by each model, and of both loops for as many predictions."""
        predictions = predictions_of(dataset)
        seconds = {kind: self.pipeline(self.open_run(dataset), run)() for kind, run in ours.items()}
        seconds["bare"] = bare(predictions)
        seconds["fp32_eager"] = fp32(predictions // FP32_SHARE) * FP32_SHARE
        return seconds

    def pipeline(self, run: Run, like: Run | None = None) -> Callable[[], float]:
        """Return a call that scores a run's images from files to shards and gives the seconds it took.

        The model, once loaded, is taken over from `like`: loading is no part of scoring.
        """
        if like is not None:
            run.take_model(like)
        scorer(run, FIRST_PASS, DRAWS)

        def work() -> float:
            start = time.perf_counter()
            ensure_latents(run)
            scorer(run, FIRST_PASS, DRAWS)(own_label_jobs(run.labels_of), run.score_folder(FIRST_PASS, DRAWS))
            settle(run.device)
            return time.perf_counter() - start

        return work

    def rank_correlation(self, dataset: LabelledImages, dtype: torch.dtype) -> float | None:
        """Of the weights as they take labels: what they have not learned to tell is noise, which rounding disorders."""
        if dtype == torch.float32:
            return None
        scores = []
        encoded = self.open_run(dataset)
        ensure_latents(encoded)
        for name in (name_of(dtype), "fp32"):
            run = self.open_run(dataset, dtype=name)
            run.__dict__["latents"] = encoded.latents  # one encoding: the scores are what is compared
            folder = run.score_folder(FIRST_PASS, DRAWS)
            scorer(run, FIRST_PASS, DRAWS)(own_label_jobs(run.labels_of), folder)
            maps = sorted(ScoreReader(folder), key=lambda m: (m.image_id, m.label))
            side = patch_side(run.latents.short_side, None, run.base.factor)
            scores.append(np.concatenate([box_means(m.typicality[None], side).ravel() for m in maps]))
        return float(spearmanr(*scores).statistic)

    def mining(self, run: Run) -> dict[str, Any]:
        """Features an image of this model; top patches and clusters of synthetic data."""
        states = run.denoiser.encode_prompts(run.prompts.of_all(run.dataset.labels))
        extractor = feature_extractor(run, run.denoiser, lambda _: states[1])
        patches = [Patch(i.image_id, "", 0, 0, 2, (0, 0, 1, 1), 0.0, 0.0) for i in run.dataset]
        width = extractor(patches, run.latents.get).shape[1]
        features = timed(lambda: extractor(patches, run.latents.get), run.device) / len(patches)
        top: dict[str, float | None] = {}
        for n in MAPS:
            too_long = bool(top) and (last := next(reversed(top.values()))) is not None and last * 10 > MAPS_BUDGET
            top[str(n)] = None if too_long else top_patches_seconds(n)
        return {
            "features_seconds_an_image": features,
            "top_patches_seconds": top,
            "clustering_seconds": {str(n): clustering_seconds(n, width) for n in MAPS},
        }


class BareUNet:
    """diffusers' own UNet in a loop, at its best: the faster attention and the fastest batch of a short probe."""

    def __init__(self, run: Run, dtype: torch.dtype) -> None:
        self.run, self.dtype = run, dtype
        checkpoint = load_checkpoint(run.model_settings)
        self.unet = checkpoint.unet
        torch.nn.Module.to(self.unet, device=run.device, dtype=dtype)
        if run.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        self.unet.eval()
        labels = run.dataset.labels
        states = Denoiser(load_checkpoint(run.model_settings), run.device, torch.float32).encode_prompts(
            run.prompts.of_all(labels)
        )
        self.states = states.to(dtype)
        cells = checkpoint.size // checkpoint.factor
        self.shape = (self.unet.config.in_channels, cells, cells)
        self.steps = len(checkpoint.scheduler.alphas_cumprod)
        self.batch, self.attention = 1, ""
        best, kept = float("inf"), None
        most = max(1, cells_at_once(run.device, dtype) // cells**2)
        for processor in (AttnProcessor2_0(), AttnProcessor()):
            self.unet.set_attn_processor(processor)
            for batch in sorted({min(batch, most) for batch in (16, 64, run.batch_size)}):
                try:
                    with enough_memory("leave out this batch"):
                        taken = timed(self._call(batch), run.device, 0.5) / batch
                except DeviceMemoryError:
                    release(run.device)
                    break
                if taken < best:
                    best, kept, self.batch, self.attention = taken, processor, batch, type(processor).__name__
        if kept is None:
            raise DeviceMemoryError("not one evaluation of this model fits into the device's memory; use --device cpu")
        self.unet.set_attn_processor(kept)

    def _call(self, batch: int) -> Callable[[], Tensor]:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn((batch, *self.shape), generator=generator).to(self.run.device, self.dtype)
        t = torch.randint(self.steps, (batch,), generator=generator).to(self.run.device)
        hidden = self.states[torch.arange(batch) % len(self.states)]

        @torch.inference_mode()
        def call() -> Tensor:
            return self.unet(z, t, hidden).sample

        return call

    def __call__(self, evaluations: int) -> float:
        """Return the seconds of so many evaluations, in whole batches and then scaled to the number."""
        call, batches = self._call(self.batch), max(1, round(evaluations / self.batch))
        settle(self.run.device)
        start = time.perf_counter()
        for _ in range(batches):
            call()
        settle(self.run.device)
        return (time.perf_counter() - start) * evaluations / (batches * self.batch)

    def flops(self) -> float:
        """Return the floating-point operations of one evaluation, counted by torch."""
        with FlopCounterMode(display=False) as counter:
            self._call(2)()
        return counter.get_total_flops() / 2


def predictions_of(dataset: LabelledImages) -> int:
    """Predictions of one pass: every draw of an image under the null prompt and under each of its labels."""
    return sum((1 + len(image.labels)) * DRAWS for image in dataset)


def name_of(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the peak rate of square matrix products in FLOP/s: the best of a second of several sizes."""
    best = 0.0
    for n in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        taken: list[float] = []
        end = time.perf_counter() + 0.7
        while len(taken) < 3 or time.perf_counter() < end:
            settle(device)
            start = time.perf_counter()
            torch.mm(a, b)
            settle(device)
            taken.append(time.perf_counter() - start)
        best = max(best, 2 * n**3 / min(taken))
        if min(taken) > 0.2:  # emulated arithmetic: larger ones would take minutes
            break
    return best


def synthetic_maps(n: int) -> Iterator[ScoreMap]:
    """Stream n maps of 64 x 64 cells and ten labels, as scoring writes them; few are distinct, for it is not timed."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((DISTINCT, CELLS, CELLS), dtype=np.float32)
    squares = {k: (box_mean(torch.from_numpy(maps), k).square() + 1).numpy() for k in dyadic_sides(CELLS, CELLS)}
    view = ModelView(CELLS * 8, CELLS * 8, 1.0, 1.0, 0.0, 0.0)
    for i in range(n):
        j = i % DISTINCT
        yield ScoreMap(
            f"{i:032x}", str(i % MAP_LABELS), view, 8, maps[j], {k: s[j] for k, s in squares.items()}, maps[j], maps[j]
        )


def top_patches_seconds(n: int) -> float:
    """Return the seconds of one core from n maps to the best patches: 5 an image, 1,000 a label."""
    selection = PatchSelection(CELLS // 8, 8, per_image=PER_IMAGE, per_label=PER_LABEL)
    start = time.process_time()
    top_patches(synthetic_maps(n), selection, lambda _: (CELLS * 8, CELLS * 8))
    return time.process_time() - start


def clustering_seconds(images: int, width: int) -> float:
    """Return the seconds to cluster the elements of so many images, label by label; see `top_patches_seconds`.

    Features are random, and the labels alike, so that one of them is timed.
    """
    n = max(1, min(PER_LABEL, PER_IMAGE * images // MAP_LABELS))
    features = np.random.default_rng(0).standard_normal((n, width), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    patches = [Patch(f"{i // 2:032x}", "", 0, 0, 1, (0, 0, 1, 1), 0.0, 0.0) for i in range(n)]
    start = time.perf_counter()
    cluster_elements(patches, features, lambda image_id: image_id, clusters=32)
    return MAP_LABELS * (time.perf_counter() - start)
