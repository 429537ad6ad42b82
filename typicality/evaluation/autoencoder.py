"""How well a model's autoencoder keeps images: reconstruction error on images of held-out groups.

What the autoencoder loses, typicality cannot see: look here first when fine detail should matter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from typicality.config import Settings
from typicality.dataset import LabelledImages, load_dataset, prepare
from typicality.dataset.split import unit_hash
from typicality.errors import InputError
from typicality.model.checkpoint import load_checkpoint
from typicality.model.denoiser import Denoiser, choose_device
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.store import write_whole

SHOWN = 12
SCALE = 2


@dataclass(frozen=True)
class Reconstruction:
    """Peak signal-to-noise ratio of decoded against encoded images, values in [0, 1].

    Attributes
    ----------
    psnr : dB, mean over images of each image's PSNR
    psnr_pooled : dB, from the mean squared error over all images; dominated by the worst
    n : images, of held-out groups where the data set has any
    size : short side in pixels
    """

    dataset: str
    psnr: float
    psnr_pooled: float
    n: int
    size: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def reconstruct(
    settings: Settings, images: int = 500, picture: Path | None = None, progress: Progress = SILENT
) -> Reconstruction:
    """Encode and decode at most `images` held-out images; optionally save some beside their originals.

    Raises
    ------
    InputError : when no image is held out.
    """
    dataset = load_dataset(settings.dataset)
    checkpoint = load_checkpoint(settings.model)
    denoiser = Denoiser(checkpoint, choose_device(settings.model.device), torch.float32)
    size = settings.model.size or checkpoint.size
    chosen = _chosen(dataset, images)
    errors: list[float] = []
    pairs: list[tuple[Image.Image, Image.Image]] = []
    progress.start("reconstruct", len(chosen))
    for image in chosen:
        pixels, _ = prepare(dataset.open(image), size, checkpoint.step, settings.model.max_aspect)
        original = torch.from_numpy(pixels)[None]
        decoded = denoiser.decode_latents(denoiser.encode_images(original))
        errors.append(float(((decoded - original) / 2).square().mean()))
        if len(pairs) < SHOWN:
            pairs.append((_picture(original), _picture(decoded)))
        progress.advance()
    progress.finish()
    if picture is not None:
        _save(pairs, picture)
    each = -10 * np.log10(np.maximum(errors, 1e-12))
    return Reconstruction(
        dataset=dataset.name,
        psnr=round(float(each.mean()), 2),
        psnr_pooled=round(float(-10 * np.log10(np.mean(errors))), 2),
        n=len(chosen),
        size=size,
    )


def _chosen(dataset: LabelledImages, images: int) -> list[LabelledImage]:
    _, held_out = dataset.held_out()
    if not held_out:
        raise InputError("no image is held out: the data set has too few groups")
    return sorted(held_out, key=lambda i: unit_hash(i.image_id, "reconstruct"))[:images]


def _picture(tensor: torch.Tensor) -> Image.Image:
    values = ((tensor[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    picture = Image.fromarray(values)
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)


def _save(pairs: list[tuple[Image.Image, Image.Image]], path: Path) -> None:
    """Originals in the upper row, reconstructions below them."""
    width = max(p.width for p, _ in pairs)
    height = max(p.height for p, _ in pairs)
    sheet = Image.new("RGB", (len(pairs) * (width + 4), 2 * (height + 4)), "white")
    for i, (original, decoded) in enumerate(pairs):
        sheet.paste(original, (i * (width + 4), 0))
        sheet.paste(decoded, (i * (width + 4), height + 4))
    write_whole(path, lambda p: sheet.save(p, format="PNG"))
