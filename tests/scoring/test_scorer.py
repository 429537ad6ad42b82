"""The scorer: what it writes does not depend on batches, order, shards or interruptions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.config import DatasetSettings
from typicality.dataset import LabelledImages, load_dataset
from typicality.errors import OutputError
from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.processes import Processes
from typicality.scoring.noise import DrawPlan, image_generator
from typicality.scoring.scorer import Job, Scorer
from typicality.scoring.shards import ScoreReader, read_index


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(tiny_checkpoint(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def dataset(tiny_folder: Path) -> LabelledImages:
    return load_dataset(DatasetSettings(source=str(tiny_folder), label="folder"))


@pytest.fixture(scope="module")
def latents(dataset: LabelledImages, denoiser: Denoiser, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    store = LatentStore(tmp_path_factory.mktemp("latents"), 32, 16, 2.0)
    assert store.encode(dataset, denoiser, batch=5) == len(dataset)
    return store


def make(denoiser: Denoiser, latents: LatentStore, **changes: object) -> Scorer:
    states = denoiser.encode_prompts(["an image", "an image of blue", "an image of red"])
    options = {"plan": DrawPlan(3, 0.1, 0.7), "seed": 0, "purpose": "test", "batch_size": 64, "shard_images": 8}
    return Scorer(denoiser, latents, states, ("blue", "red"), **(options | changes))  # type: ignore[arg-type]


def jobs_of(dataset: LabelledImages) -> list[Job]:
    return [Job(image.image_id, image.labels) for image in dataset]


def as_arrays(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    return {(m.image_id, m.label): m.typicality for m in ScoreReader(folder)}


def test_every_image_is_scored_for_its_label(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages, tmp_path: Path
) -> None:
    before = denoiser.evaluations
    assert make(denoiser, latents)(jobs_of(dataset), tmp_path) == len(dataset)
    found = as_arrays(tmp_path)
    assert set(found) == {(i.image_id, label) for i in dataset for label in i.labels}
    assert {m.shape for m in found.values()} == {(8, 8), (8, 12)}
    assert denoiser.evaluations - before == len(dataset) * 2 * 6  # null and label, 3 antithetic pairs


@pytest.mark.parametrize(("batch_size", "shard_images"), [(1, 8), (7, 3), (500, 100)])
def test_result_does_not_depend_on_batches_shards_or_order(
    denoiser: Denoiser,
    latents: LatentStore,
    dataset: LabelledImages,
    tmp_path: Path,
    batch_size: int,
    shard_images: int,
) -> None:
    jobs = jobs_of(dataset)[:9]
    make(denoiser, latents)(jobs, tmp_path / "a")
    make(denoiser, latents, batch_size=batch_size, shard_images=shard_images)(jobs[::-1], tmp_path / "b")
    first, second = as_arrays(tmp_path / "a"), as_arrays(tmp_path / "b")
    assert set(first) == set(second)
    for key, expected in first.items():
        np.testing.assert_allclose(second[key], expected, rtol=1e-3, atol=1e-6)


def test_own_label_first_or_all_labels_give_the_same_map(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages
) -> None:
    """The noise is the image's: scoring further labels with it changes nothing for the first."""
    image = dataset[0]
    scorer = make(denoiser, latents)
    alone = scorer.score([Job(image.image_id, ("red",))])[0]
    both = scorer.score([Job(image.image_id, ("blue", "red"))])[1]
    np.testing.assert_allclose(both.moments.typicality, alone.moments.typicality, rtol=1e-3, atol=1e-6)


def test_a_score_is_that_of_the_labels_own_prompt(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages
) -> None:
    """By hand, for red: the mean of D (2 eps - c - null) over both signs of every unit's noise, and over channels."""
    image_id = dataset[0].image_id
    scorer = make(denoiser, latents)
    (row,) = scorer.score([Job(image_id, ("red",))])
    z = latents.stack([image_id])
    generator = image_generator(image_id, 0, "test")
    times = scorer.plan.timesteps(denoiser.timesteps, generator)
    noises = scorer.plan.noises(tuple(z.shape[1:]), generator)
    states = denoiser.encode_prompts(["an image", "an image of red"])
    found = []
    for t, noise in zip(times, noises, strict=True):
        abar = denoiser.alphas_cumprod[t]
        for eps in (noise, -noise):
            null, red = denoiser.predict_noise(abar.sqrt() * z + (1 - abar).sqrt() * eps, t[None], states)
            found.append(((red - null) * (2 * eps - red - null))[0].mean(0))
    expected = torch.stack(found).mean(0)
    torch.testing.assert_close(row.moments.typicality, expected, rtol=1e-3, atol=1e-6)
    assert row.mean == pytest.approx(float(expected.mean()), rel=1e-3)


def test_seed_and_purpose_change_the_noise(denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages) -> None:
    job = [Job(dataset[0].image_id, dataset[0].labels)]
    maps = [
        make(denoiser, latents, **change).score(job)[0].moments.typicality
        for change in ({}, {"seed": 1}, {"purpose": "gold"})
    ]
    assert not torch.allclose(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_continues_after_a_kill_and_ignores_a_half_written_shard(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages, tmp_path: Path
) -> None:
    """A shard whose index is missing (killed between the two writes) is scored again, the others are kept."""
    jobs = jobs_of(dataset)
    scorer = make(denoiser, latents)
    scorer(jobs, tmp_path / "whole")
    scorer(jobs, tmp_path / "killed")
    victim = sorted((tmp_path / "killed").glob("*.parquet"))[0]
    victim.unlink()
    missing = len(jobs) - len(read_index(tmp_path / "killed"))
    assert missing > 0
    assert scorer(jobs, tmp_path / "killed") == missing
    whole, continued = as_arrays(tmp_path / "whole"), as_arrays(tmp_path / "killed")
    assert set(whole) == set(continued)
    for key, expected in whole.items():
        np.testing.assert_array_equal(continued[key], expected)


@dataclass(frozen=True)
class OneOfSeveral(Processes):
    """A process whose others have nothing to add: barriers are passed, totals are its own."""

    def total(self, number: int) -> int:
        return number


def test_shares_of_several_processes_are_the_whole_to_the_last_bit(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages, tmp_path: Path
) -> None:
    """Three processes, one after the other in one folder: images in the same batches as with one, none twice."""
    jobs = jobs_of(dataset)
    make(denoiser, latents, batch_size=24)(jobs, tmp_path / "one")
    before = denoiser.evaluations
    for rank in range(3):
        # as if all had begun at once: what the others have written since is not looked at
        scorer = make(denoiser, latents, batch_size=24, processes=OneOfSeveral(rank, 3))
        scorer(jobs, tmp_path / f"rank-{rank}")
        for path in (tmp_path / f"rank-{rank}").iterdir():
            (tmp_path / "three").mkdir(exist_ok=True)
            assert not (tmp_path / "three" / path.name).exists()
            path.rename(tmp_path / "three" / path.name)
    assert denoiser.evaluations - before == len(dataset) * 2 * 6
    one, three = as_arrays(tmp_path / "one"), as_arrays(tmp_path / "three")
    assert set(one) == set(three)
    for key, expected in one.items():
        np.testing.assert_array_equal(three[key], expected)


def test_what_is_missing_is_scored_in_the_batches_of_the_whole(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages, tmp_path: Path
) -> None:
    """One shard of many is lost, in the middle: its maps come back to the last bit, in other shards too."""
    jobs = jobs_of(dataset)
    scorer = make(denoiser, latents, batch_size=24, shard_images=4)
    scorer(jobs, tmp_path)
    expected = as_arrays(tmp_path)
    lost = sorted(tmp_path.glob("*.parquet"))[3]
    lost.unlink()
    assert 0 < make(denoiser, latents, batch_size=24, shard_images=9)(jobs, tmp_path) < len(jobs)
    found = as_arrays(tmp_path)
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def test_added_images_are_scored_alone(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages, tmp_path: Path
) -> None:
    jobs = jobs_of(dataset)
    scorer = make(denoiser, latents)
    assert scorer(jobs[:10], tmp_path) == 10
    assert scorer(jobs, tmp_path) == len(jobs) - 10
    assert scorer(jobs, tmp_path) == 0


def test_scores_that_are_gone_are_named(tmp_path: Path) -> None:
    """A folder whose files were removed: one sentence says what is missing and what to do."""
    with pytest.raises(OutputError, match=r"no scores of image abc under '2016'.*typicality mine"):
        ScoreReader(tmp_path).get("abc", "2016")


def test_even_part_of_a_linear_denoiser(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The null predicts 0 and the label a times its input x = sqrt(abar) z + sqrt(1 - abar) eps.

    D = a x and q = 2 eps - a x, whose even parts are a sqrt(abar) z and its negative: the even part is -a^2 abar z^2,
    without any noise, and all of the noise is odd. Draws that are not antithetic have no parts.
    """
    a, jobs = 0.3, [j for j in jobs_of(dataset) if latents.view(j.image_id).width == 32][:2]

    def predict(x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.stack([torch.zeros_like(x), a * x])

    monkeypatch.setattr(denoiser, "predict_noise", predict)
    scorer = make(denoiser, latents)
    maps = scorer.unit_maps(jobs)
    z = latents.stack([j.image_id for j in jobs])
    for i, job in enumerate(jobs):
        t = scorer.plan.timesteps(denoiser.timesteps, image_generator(job.image_id, 0, "test"))
        abar = denoiser.alphas_cumprod[t].view(-1, 1, 1)
        torch.testing.assert_close(maps.even[i, 0], -(a**2) * abar * z[i].square().mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(maps.even, maps.differences, rtol=0.1)
    scorer(jobs, tmp_path)
    stored = ScoreReader(tmp_path).get(jobs[0].image_id, jobs[0].labels[0])
    assert stored.even is not None
    assert stored.even_share is not None
    np.testing.assert_allclose(stored.even, maps.even[0, 0].mean(0), rtol=1e-5)
    assert len(stored.even_share) == len(stored.squares)
    alone = make(denoiser, latents, plan=DrawPlan(3, 0.1, 0.7, antithetic=False)).unit_maps(jobs)
    assert torch.equal(alone.even, alone.differences)


def test_a_tilt_changes_where_draws_lie_and_not_what_they_estimate(
    denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose labels act at small timesteps alone; from 400 units, T, D^2, L(null) and the even part agree."""
    jobs = [j for j in jobs_of(dataset) if latents.view(j.image_id).width == 32][:1]

    def predict(x: torch.Tensor, t: torch.Tensor, *_: object) -> torch.Tensor:
        strength = (t < 400)[:, None, None, None] * 0.3
        return torch.stack([torch.zeros_like(x), strength * x])

    monkeypatch.setattr(denoiser, "predict_noise", predict)
    plain, tilted = (
        make(denoiser, latents, plan=DrawPlan(400, 0.1, 0.7, tilt=tilt)).unit_maps(jobs) for tilt in (0.0, 1.2)
    )
    for one, other in zip(plain, tilted, strict=True):
        assert other.mean().item() == pytest.approx(one.mean().item(), rel=0.05)
        assert not torch.equal(one, other)
    differ = [maps.differences[0, 0].ne(0).any(-1).any(-1).double().mean().item() for maps in (plain, tilted)]
    assert differ == pytest.approx([0.5, -math.expm1(-0.6) / -math.expm1(-1.2)], abs=0.01)


def test_scores_are_scaled(denoiser: Denoiser, latents: LatentStore, dataset: LabelledImages) -> None:
    jobs = [j for j in jobs_of(dataset) if latents.view(j.image_id).width == 32][:3]
    plain, shift, null, _ = make(denoiser, latents).unit_maps(jobs)
    scaled, scaled_shift, same_null, _ = make(denoiser, latents, label_scale=0.5).unit_maps(jobs)
    assert torch.equal(null, same_null)
    torch.testing.assert_close(scaled_shift, shift / 4, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(scaled, 0.5 * (plain + 0.5 * shift), rtol=1e-3, atol=1e-7)
