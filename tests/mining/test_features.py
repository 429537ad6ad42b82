"""Features of patches, and the search for their neighbours."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from typicality.mining.features import FeatureExtractor, element_index, patch_features, write_index
from typicality.scoring.noise import image_generator


def test_average_worked_by_hand(make_patch):
    """Feature cells (3, 0), (0, 4) side by side: a patch over both averages (1.5, 2), which has norm 2.5."""
    features = np.array([[[3.0, 0.0]], [[0.0, 4.0]]])
    patches = [make_patch(column=0), make_patch(column=1)]
    np.testing.assert_array_equal(patch_features(features, patches, (1, 2)), [[1, 0], [0, 1]])
    both = [make_patch(side=2)]
    np.testing.assert_allclose(patch_features(np.repeat(features, 2, axis=1), both, (2, 2)), [[0.6, 0.8]], rtol=1e-6)


def test_coarser_grid_is_weighted_by_area(make_patch):
    """Four latent cells over two feature cells: latent [1, 4) is feature [0.5, 2), one third of it in the first cell.

    The rows are alike, so the average is (3/3, 2 * 6/3) = (1, 4) before normalisation.
    """
    features = np.array([[[3.0, 0.0]] * 2, [[0.0, 6.0]] * 2])
    got = patch_features(features, [make_patch(column=1, side=3)], (4, 4))
    np.testing.assert_allclose(got, [np.array([1, 4]) / np.sqrt(17)], rtol=1e-6)


def test_finer_grid_equals_the_naive_average(make_patch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 12, 18)).astype(np.float32)
    patches = [make_patch(row=r, column=c, side=2) for r in range(3) for c in range(5)]
    got = patch_features(torch.from_numpy(features), patches, (4, 6))
    assert got.dtype == np.float32
    for p, feature in zip(patches, got, strict=True):
        mean = features[:, 3 * p.row : 3 * p.row + 6, 3 * p.column : 3 * p.column + 6].mean(axis=(1, 2))
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean), rtol=1e-5)


def test_a_patch_over_several_grids_equals_the_resampled_map(make_patch):
    """A 3 x 3 feature map under an 8 x 8 latent grid: repeat every feature cell 8 times, then average 3 per latent."""
    features = np.random.default_rng(1).normal(size=(4, 3, 3))
    fine = features.repeat(8, axis=1).repeat(8, axis=2)
    patch = make_patch(row=1, column=4, side=3)
    mean = fine[:, 3:12, 12:21].mean(axis=(1, 2))
    np.testing.assert_allclose(patch_features(features, [patch], (8, 8))[0], mean / np.linalg.norm(mean), rtol=1e-6)


def test_zero_features_stay_zero_and_no_patch_gives_no_row(make_patch):
    np.testing.assert_array_equal(patch_features(np.zeros((3, 2, 2)), [make_patch()], (2, 2)), np.zeros((1, 3)))
    assert patch_features(np.zeros((3, 2, 2)), [], (2, 2)).shape == (0, 3)


class LinearDenoiser:
    """Its features are half the latent, plus the noise, plus the prompt's state."""

    timesteps = 1000

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.seen: set[int] = set()

    def features(self, latents, noise, timestep, prompt_states, up_block=1):
        assert up_block == 1
        assert len(latents) == len(noise) == len(prompt_states)
        self.seen.add(timestep)
        self.batches.append(len(latents))
        return 0.5 * latents + noise + prompt_states[:, :, :1, None]


@pytest.fixture
def scene(make_patch):
    """Patches of three images of two shapes, one of them mined for two labels; features have two channels."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 4), "b": (4, 6), "c": (4, 4)}
    latents = {name: torch.randn(2, *shape, generator=generator) for name, shape in shapes.items()}
    states = {"x": torch.tensor([[1.0], [0.0]]), "y": torch.tensor([[0.0], [1.0]])}
    keys = [("c", "y"), ("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")]
    patches = [make_patch(name, label, row=i % 3, side=2) for i, (name, label) in enumerate(keys)]
    return patches, latents, states


def test_extractor_reads_the_image_with_its_own_noises_under_the_labels_prompt(scene):
    """Half the latent, plus the mean of the image's own three noises, plus the state of the label's prompt."""
    patches, latents, states = scene
    got = FeatureExtractor(LinearDenoiser(), states.__getitem__, noises=3, seed=9)(patches, latents.__getitem__)
    for patch, feature in zip(patches, got, strict=True):
        z = latents[patch.image_id]
        noise = torch.randn((3, *z.shape), generator=image_generator(patch.image_id, 9, "features"))
        feature_map = 0.5 * z + noise.mean(dim=0) + states[patch.label][:, :, None]
        expected = patch_features(feature_map, [patch], (z.shape[1], z.shape[2]))[0]
        np.testing.assert_allclose(feature, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 6, 1000])
def test_features_depend_on_neither_batch_nor_order(scene, batch_size):
    """Four pairs of image and label cost 4 * 3 evaluations, however many patches they have."""
    patches, latents, states = scene
    expected = FeatureExtractor(LinearDenoiser(), states.__getitem__, noises=3)(patches, latents.__getitem__)
    denoiser = LinearDenoiser()
    extractor = FeatureExtractor(denoiser, states.__getitem__, noises=3, batch_size=batch_size)
    got = extractor(patches[::-1], latents.__getitem__)
    np.testing.assert_array_equal(got[::-1], expected)
    assert sum(denoiser.batches) == 12
    assert max(denoiser.batches) <= batch_size


def test_a_model_with_fewer_steps_is_read_at_the_same_share(make_patch):
    """161 of 1000 is 16 of 100."""

    for total, timestep in ((1000, 161), (100, 16)):
        denoiser = LinearDenoiser()
        denoiser.timesteps = total
        extractor = FeatureExtractor(denoiser, lambda label: torch.zeros(2, 1), noises=1)
        assert extractor([make_patch()], lambda image_id: torch.ones(2, 4, 4)).shape == (1, 2)
        assert denoiser.seen == {timestep}


def test_an_elements_nearest_neighbour_is_itself(tmp_path):
    """In the file as other programs read it: neighbours by cosine, in the order of the rows."""
    features = np.random.default_rng(2).normal(size=(20, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    write_index(tmp_path / "index.faiss", element_index(features))
    similarity, rows = faiss.read_index(str(tmp_path / "index.faiss")).search(features, 3)
    np.testing.assert_array_equal(rows[:, 0], np.arange(20))
    np.testing.assert_allclose(similarity[:, 0], 1, rtol=1e-5)
    np.testing.assert_array_equal(rows, np.argsort(-features @ features.T, axis=1)[:, :3])
