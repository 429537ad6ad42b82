"""Latents on disk: the same whoever encodes them, and few shards open at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.config import DatasetSettings
from typicality.dataset import LabelledImages, load_dataset
from typicality.model import latents as module
from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.processes import Processes


@dataclass(frozen=True)
class OneOfSeveral(Processes):
    """A process whose others have nothing to add: barriers are passed."""

    def total(self, number: int) -> int:
        return number


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(tiny_checkpoint(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def dataset(tiny_folder: Path) -> LabelledImages:
    return load_dataset(DatasetSettings(source=str(tiny_folder), label="folder"))


def test_two_processes_encode_disjoint_parts_of_the_same_latents(
    denoiser: Denoiser, dataset: LabelledImages, tmp_path: Path
) -> None:
    whole = LatentStore(tmp_path / "one", 32, 16, 2.0)
    assert whole.encode(dataset, denoiser, batch=4) == len(dataset)
    for rank in range(2):
        part = LatentStore(tmp_path / f"rank-{rank}", 32, 16, 2.0)
        part.encode(dataset, denoiser, batch=4, processes=OneOfSeveral(rank, 2))
        assert 0 < sum(image.image_id in part for image in dataset) < len(dataset)
        for path in (tmp_path / f"rank-{rank}").iterdir():
            (tmp_path / "two").mkdir(exist_ok=True)
            assert not (tmp_path / "two" / path.name).exists()
            path.rename(tmp_path / "two" / path.name)
    shared = LatentStore(tmp_path / "two", 32, 16, 2.0)
    for image in dataset:
        assert torch.equal(shared.get(image.image_id), whole.get(image.image_id))
        assert shared.view(image.image_id) == whole.view(image.image_id)


def test_large_images_are_encoded_a_few_at_a_time(
    denoiser: Denoiser, dataset: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 x 32 and 32 x 48 (cropped to multiples of 16) with room for 3,200 pixels: batches of 3 and of 2 at most."""
    sizes: list[tuple[int, ...]] = []
    encode_images = Denoiser.encode_images

    def spy(self: Denoiser, images: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(images.shape))
        return encode_images(self, images)

    monkeypatch.setattr(Denoiser, "encode_images", spy)
    monkeypatch.setattr(module, "CPU_PIXELS_AT_ONCE", 3200)
    store = LatentStore(tmp_path, 32, 16, 2.0)
    assert store.encode(dataset, denoiser) == len(dataset)
    assert sum(n for n, *_ in sizes) == len(dataset)
    assert max(n * height * width for n, _, height, width in sizes) <= 3200
    assert max(n for n, *_ in sizes) == 3
    assert len({(height, width) for _, _, height, width in sizes}) == 2


def test_few_shards_are_open_at_a_time(
    denoiser: Denoiser, dataset: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 shards of 4 images, 3 open: memory does not grow with the data set, and every latent is still found."""
    monkeypatch.setattr(module, "SHARD_IMAGES", 4)
    monkeypatch.setattr(module, "OPEN_SHARDS", 3)
    store = LatentStore(tmp_path, 32, 16, 2.0)
    store.encode(dataset, denoiser, batch=4)
    assert len(list(tmp_path.glob("*.safetensors"))) > 6
    first = [store.get(image.image_id) for image in dataset]
    again = [store.get(image.image_id) for image in dataset]
    assert len(store._open) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(z.shape) for z in first}) == 2


def test_shards_of_other_processes_are_seen_after_a_reload(
    denoiser: Denoiser, dataset: LabelledImages, tmp_path: Path
) -> None:
    early = LatentStore(tmp_path, 32, 16, 2.0)
    LatentStore(tmp_path, 32, 16, 2.0).encode(dataset, denoiser)
    assert dataset[0].image_id not in early
    early.reload()
    assert all(image.image_id in early for image in dataset)
