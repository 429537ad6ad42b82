"""How fast a model is on this machine, from a few seconds of real UNet evaluations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from typicality.model.denoiser import Denoiser

SECONDS = 1.0
BATCHES = (8, 32, 128)


def settle(device: torch.device) -> None:
    """Wait for the device, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Callable[[], object], device: torch.device, seconds: float = SECONDS, least: int = 2) -> float:
    """Return the median of the seconds that `work` takes, after one call that does not count.

    It is repeated for about so many seconds, and `least` times at any rate. The median, since a machine that is shared
    has outliers to both sides.
    """
    work()
    settle(device)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < least or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        settle(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def evaluation_of(denoiser: Denoiser, batch: int) -> Callable[[], object]:
    """Return a call that evaluates the UNet once on `batch` latents of the model's own size."""
    unet = denoiser.checkpoint.unet.config
    cells = denoiser.checkpoint.size // denoiser.checkpoint.factor
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, unet.in_channels, cells, cells, generator=generator)
    t = torch.full((batch,), denoiser.timesteps // 2)
    states = denoiser.encode_prompts(["a probe"])
    return lambda: denoiser.predict_noise(z, t, states)


def seconds_an_evaluation(
    denoiser: Denoiser, batches: Sequence[int] = BATCHES, seconds: float = SECONDS
) -> dict[int, float]:
    """Return for each batch size the seconds that one evaluation takes in it.

    Batches that do not fit into the device's memory are left out, and so are larger ones where a single evaluation
    takes longer than `seconds`.
    """
    found: dict[int, float] = {}
    for batch in batches:
        if found and batch * min(found.values()) > 4 * seconds:
            break
        try:
            found[batch] = timed(evaluation_of(denoiser, batch), denoiser.device, seconds) / batch
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    return found
