"""What this machine can do: versions, devices, precision, the model that would be used and its measured speed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from typicality.config import ModelSettings
from typicality.model.checkpoint import load_checkpoint
from typicality.model.denoiser import (
    DTYPES,
    Denoiser,
    choose_device,
    choose_dtype,
    compiles,
    has_bfloat16,
    precision_of,
)
from typicality.model.probe import BATCHES, compiled_denoiser, seconds_an_evaluation
from typicality.store import VERSIONED


def examine(settings: ModelSettings) -> dict[str, Any]:
    """Return what was found; takes a few seconds, because it measures the UNet in each precision on offer.

    `--dtype auto` goes by the kind of device and not by this probe: the precision is part of what a run's scores are
    stored under, so it must not turn with the load of the machine when a run is continued.
    """
    device = choose_device(settings.device)
    checkpoint = load_checkpoint(settings)
    chosen = choose_dtype(settings.dtype, device)
    speeds, fastest = {}, {}
    for name, dtype in _on_offer(device):
        found = seconds_an_evaluation(Denoiser(load_checkpoint(settings), device, dtype))
        batch = min(found, key=found.__getitem__)
        fastest[name] = found[batch]
        speeds[name] = f"{1000 * found[batch]:.2f} ms a UNet evaluation, in batches of {batch}"
    if compiles("auto", device, torch.float32, checkpoint):
        for name in ("fp32", "bf16") if has_bfloat16() else ("fp32",):
            found = seconds_an_evaluation(compiled_denoiser(settings, device, DTYPES[name]), BATCHES[1:])
            speeds[f"{name} by OpenVINO"] = f"{1000 * min(found.values()):.2f} ms a UNet evaluation, on many images"
    best = min(fastest, key=fastest.__getitem__)
    agrees = DTYPES[best] == chosen
    speeds["advice"] = (
        f"{best} is the fastest here, and what is chosen" if agrees else
        f"{best} is the fastest in this probe; use --dtype {best} if it stays so when the machine is idle"
    )  # fmt: skip
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
        "precision": precision_of(chosen),
        "model": {
            "name": checkpoint.title,
            "why": checkpoint.reason,
            "size": f"{checkpoint.size} px, autoencoder factor {checkpoint.factor}",
            "UNet parameters": f"{checkpoint.parameters / 1e6:.1f} M",
        },
        "speed": speeds,
    }


def _on_offer(device: torch.device) -> list[tuple[str, torch.dtype]]:
    """The precisions that a device computes in: float32, and half precisions where they are more than emulated."""
    names = {"cpu": ["fp32", "bf16"], "cuda": ["fp32", "fp16"], "mps": ["fp32", "fp16"]}[device.type]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        names.append("bf16")
    return [(name, DTYPES[name]) for name in names]
