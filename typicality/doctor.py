"""What this machine can do: versions, devices, precision, the model that would be used and its measured speed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from typing import Any

import torch

from typicality.config import ModelSettings
from typicality.model.checkpoint import load_checkpoint
from typicality.model.denoiser import Denoiser, choose_device, choose_dtype
from typicality.store import VERSIONED

PROBE_BATCH = 64
PROBE_SECONDS = 2.0


def examine(settings: ModelSettings) -> dict[str, Any]:
    """Return what was found; takes a few seconds, because it measures the UNet in each precision on offer."""
    device = choose_device(settings.device)
    checkpoint = load_checkpoint(settings)
    chosen = choose_dtype(settings.dtype, device)
    speeds = {}
    for name, dtype in (("fp32", torch.float32), (str(chosen).removeprefix("torch."), chosen)):
        speeds[name] = (
            f"{1000 * seconds_an_evaluation(load_checkpoint(settings), device, dtype):.2f} ms a UNet evaluation"
        )
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in VERSIONED},
        "devices": {
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "none",
            "mps": "available" if torch.backends.mps.is_available() else "none",
            "chosen": str(device),
        },
        "precision": str(chosen).removeprefix("torch."),
        "model": {
            "name": checkpoint.name,
            "why": checkpoint.reason,
            "size": f"{checkpoint.size} px, autoencoder factor {checkpoint.factor}",
            "UNet parameters": f"{checkpoint.parameters / 1e6:.1f} M",
        },
        "speed": speeds,
    }


def seconds_an_evaluation(checkpoint: Any, device: torch.device, dtype: torch.dtype) -> float:
    """Time UNet evaluations in batches of 64 for about two seconds; the fastest batch counts."""
    denoiser = Denoiser(checkpoint, device, dtype)
    unet = checkpoint.unet.config
    cells = checkpoint.size // checkpoint.factor
    batch = PROBE_BATCH if cells <= 32 else 2
    z = torch.randn(batch, unet.in_channels, cells, cells)
    t = torch.full((batch,), denoiser.timesteps // 2)
    states = denoiser.encode_prompts(["a probe"])
    best, began = float("inf"), time.monotonic()
    while time.monotonic() - began < PROBE_SECONDS:
        start = time.perf_counter()
        denoiser.predict_noise(z, t, states)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / batch)
    return best
