"""A tiny run over subjects that exist in two designs: the same square, dull in 2016 and blue in 2024."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import typicality

SUBJECTS = 20
"""Named b0 to b19: by their hashes five are held out, of which two are for tuning and three for the test."""


def draw_subjects(folder: Path) -> Path:
    """Write 20 subjects x 2 years, 32 x 32 pixels, with a table of `year` and `subject`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["file_name,year,subject"]
    for subject in range(SUBJECTS):
        y, x = rng.integers(0, 20, 2)
        for year, colour in (("2016", (120, 110, 90)), ("2024", (30, 60, 240))):
            pixels = rng.integers(235, 255, (32, 32, 3), dtype=np.uint8)
            pixels[y : y + 12, x : x + 12] = colour
            name = f"{year}-{subject}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append(f"{name},{year},b{subject}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


def mine(folder: Path, model: Path, **finetune: Any) -> Path:
    """Mine the subjects by year with hardly any work, under settings of fine-tuning; return the run directory."""
    source = draw_subjects(folder / "subjects")
    result = typicality.mine(
        source, "year", model=str(model), out=folder / "run", dtype="fp32",
        dataset={"group": "subject"}, finetune={"steps": 2, "batch_size": 4, "validate_every": 2, **finetune},
        score={"draws": 2, "refine_draws": 4, "further_draws": 6},
        mine={"noises": 1, "share": 1.0, "per_label": 24, "clusters": 3},
    )  # fmt: skip
    return result.folder
