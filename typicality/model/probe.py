"""How fast a model is on this machine, from a few seconds of real UNet evaluations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from typicality.config import ModelSettings
from typicality.errors import DeviceMemoryError
from typicality.model.calibration import LabelUse
from typicality.model.checkpoint import Checkpoint, load_checkpoint
from typicality.model.denoiser import Denoiser, compiles, has_bfloat16, precision_of

SECONDS = 1.0
BATCHES = (8, 32, 128)
FASTER = 0.95
"""Of torch's seconds, at most, that OpenVINO may take to be chosen in bfloat16."""
COARSER = 1.1
"""Of torch's error against float32, at most, that OpenVINO may have to be chosen in bfloat16."""


def settle(device: torch.device) -> None:
    """Wait for the device, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def release(device: torch.device) -> None:
    """Give back the device's memory that torch keeps for later, after more was asked for than there is."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


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
    z, t = _latents(denoiser, batch)
    states = denoiser.encode_prompts(["a probe"])
    return lambda: denoiser.predict_noise(z, t, states)


def _latents(denoiser: Denoiser, batch: int) -> tuple[Tensor, Tensor]:
    """Random latents of the model's own size, and their timesteps."""
    cells = denoiser.checkpoint.size // denoiser.checkpoint.factor
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, denoiser.checkpoint.unet.config.in_channels, cells, cells, generator=generator)
    return z, torch.full((batch,), denoiser.timesteps // 2)


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
        except DeviceMemoryError:
            release(denoiser.device)
            break
    return found


def compiled_denoiser(
    settings: ModelSettings, device: torch.device, dtype: torch.dtype, use: LabelUse | None = None
) -> Denoiser:
    """Return a model whose UNet is compiled for latents of its own size."""
    checkpoint = _loaded(settings, use)
    cells = checkpoint.size // checkpoint.factor
    return Denoiser(checkpoint, device, dtype, [(cells, cells)])


def _loaded(settings: ModelSettings, use: LabelUse | None) -> Checkpoint:
    checkpoint = load_checkpoint(settings)
    checkpoint.label_use = use or checkpoint.label_use
    return checkpoint


def is_compiled_better(
    settings: ModelSettings, device: torch.device, dtype: torch.dtype, use: LabelUse | None = None
) -> bool:
    """Whether OpenVINO runs the UNet faster than torch does, and no less exactly; takes some ten seconds.

    In float32 that was measured once for all. In bfloat16 it depends on the processor, and both round: compared are the
    errors, against float32, of what a score is made of, the shift of a prediction by the prompt.
    """
    if dtype == torch.float32:
        return True
    plain = Denoiser(_loaded(settings, use), device, dtype)
    compiled = compiled_denoiser(settings, device, dtype, use)
    batch = BATCHES[1]
    if timed(evaluation_of(compiled, batch), device) > FASTER * timed(evaluation_of(plain, batch), device):
        return False
    exact = Denoiser(_loaded(settings, use), device, torch.float32)
    truth, of_plain, of_compiled = (_shift(denoiser, batch) for denoiser in (exact, plain, compiled))
    return float((of_compiled - truth).norm()) <= COARSER * float((of_plain - truth).norm())


def chosen_engine(
    settings: ModelSettings, device: torch.device, dtype: torch.dtype, base: Checkpoint, use: LabelUse | None = None
) -> str:
    """Return what runs the UNet of a long run here: openvino or torch; `use` is how it will take labels, if otherwise.

    Raises
    ------
    SettingsError : where one was asked for that cannot.
    """
    if not compiles(settings.engine, device, dtype, base):
        return "torch"
    asked = settings.engine == "openvino"
    return "openvino" if asked or is_compiled_better(settings, device, dtype, use) else "torch"


def _shift(denoiser: Denoiser, batch: int) -> Tensor:
    """The shift of predictions by a prompt, on latents of the model's own size."""
    z, t = _latents(denoiser, batch)
    null, one = denoiser.predict_noise(z, t, denoiser.encode_prompts(["", "a probe"]))
    return one - null


def slow_precision(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return what to say of a precision that the processor only emulates; None of others."""
    if device.type != "cpu" or dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16()):
        return None
    return (
        f"{precision_of(dtype)} is many times slower than float32 on this processor; --dtype fp32 avoids that, and "
        "makes anew what is there in another precision"
    )
