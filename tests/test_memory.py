"""Peak memory does not grow with the number of images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FEW, MANY = 1_000, 10_000
SCRIPT = """
import sys
import typicality
from typicality.store import peak_memory_mb
source, model, engine, out = sys.argv[1:]
typicality.mine(
    source, "folder", model={"name": model, "engine": engine, "dtype": "fp32"}, out=out, finetune={"enabled": False},
    score={"protocol": "uniform", "draws": 2}, mine={"noises": 1, "per_label": 40, "clusters": 4},
)
print(peak_memory_mb())
"""


def peak(folder: Path, model: Path, engine: str, n: int) -> float:
    """Mine n images of 32 px in a process of its own and return its largest resident size in MB."""
    rng = np.random.default_rng(n)
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(n // 2):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{i}.png", compress_level=0)
    words = [sys.executable, "-c", SCRIPT, str(folder / "images"), str(model), engine, str(folder / "run")]
    plain = {
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "1",
    }  # allocators that keep little of what is freed
    environment = os.environ | plain | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_ten_thousand_images_take_the_memory_of_a_thousand(tiny_model: Path, tmp_path: Path, engine: str) -> None:
    """With either engine: OpenVINO takes some memory of its own, and by default large runs alone have it."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    few, many = (peak(tmp_path / str(n), tiny_model, engine, n) for n in (FEW, MANY))
    assert many < 1.1 * few, f"{many} MB against {few} MB"
