"""The compiled UNet: torch's predictions, for any number of inputs and prompts, and nothing told to anybody."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.config import Engine, resolve
from typicality.errors import SettingsError
from typicality.model import denoiser as module
from typicality.model.checkpoint import Checkpoint
from typicality.model.compiled import PIECE, CompiledUNet
from typicality.model.denoiser import Denoiser, may_compile
from typicality.model.unet import predict
from typicality.pipeline import mine
from typicality.run import open_run

CPU = torch.device("cpu")
SHAPE = (8, 8)
PROMPTS = ["an image", "an image of red", "an image of blue"]


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(tiny_checkpoint(), CPU, torch.float32, [SHAPE])


def inputs(n: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 4, side, side, generator=generator), torch.randint(1, 900, (n,), generator=generator)


@pytest.mark.parametrize("n", [1, PIECE // 2, PIECE + 3])
@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_predictions_are_those_of_torch(denoiser: Denoiser, n: int, prompts: int) -> None:
    """Fewer than a piece, a piece, and more than one with a rest, under one prompt or several."""
    z, t = inputs(n)
    states = denoiser.encode_prompts(PROMPTS[:prompts])
    found = denoiser.predict_noise(z, t, states)
    with denoiser.in_torch():
        expected = denoiser.predict_noise(z, t, states)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, expected)  # or it would be torch that computed both


def test_a_unet_that_sees_the_prompt_at_once_is_cut_at_its_beginning() -> None:
    """As in Stable Diffusion, whose first block has cross-attention: the head is the first convolution alone."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
    ).eval()  # fmt: skip
    z, t = inputs(3)
    hidden = torch.randn(6, 5, 16)
    compiled = CompiledUNet(unet, z.shape[1:], hidden.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(compiled(z, t, hidden, 2), predict(unet, z, t, hidden, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell")
def test_the_process_is_bound_to_no_core(denoiser: Denoiser) -> None:
    """OpenVINO would bind it to the first ones, and several processes would share those."""
    before = os.sched_getaffinity(0)
    denoiser.predict_noise(*inputs(PIECE), denoiser.encode_prompts(PROMPTS))
    assert os.sched_getaffinity(0) == before


def test_other_shapes_are_left_to_torch(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CompiledUNet", lambda *_: pytest.fail("nothing is to be compiled"))
    z, t = inputs(2, side=16)
    denoiser.predict_noise(z, t, denoiser.encode_prompts(PROMPTS))


def test_nothing_is_reported_to_the_makers(denoiser: Denoiser) -> None:
    """OpenVINO reports its use through a package of its own, which it finds missing here."""
    denoiser.predict_noise(*inputs(1), denoiser.encode_prompts(PROMPTS))
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")
    assert not any(name.startswith("openvino_telemetry.") for name in sys.modules)


@pytest.mark.parametrize(
    ("engine", "device", "dtype", "compiles"),
    [
        ("auto", "cpu", torch.float32, True),
        ("openvino", "cpu", torch.float32, True),
        ("torch", "cpu", torch.float32, False),
        ("auto", "cpu", torch.bfloat16, False),
        ("auto", "cuda", torch.float32, False),
    ],
)
def test_float32_on_a_cpu_is_compiled(engine: Engine, device: str, dtype: torch.dtype, compiles: bool) -> None:
    assert may_compile(engine, torch.device(device), dtype) == compiles


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="--dtype fp32"):
        may_compile("openvino", CPU, torch.bfloat16)
    monkeypatch.setattr(module, "is_available", lambda: False)
    assert not may_compile("auto", CPU, torch.float32)
    with pytest.raises(SettingsError, match=r"typicality\[cpu\]"):
        may_compile("openvino", CPU, torch.float32)


def test_a_run_compiles_where_the_first_pass_is_long_enough(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32 images 20 are square and 12 wide: 4 draws under two prompts are 160 and 96 evaluations.

    The shapes are those of latents: 40 x 40 and 40 x 72 pixels become 32 x 32 and 32 x 48, with a factor of 4.
    """

    def shapes(**model: str) -> set[tuple[int, int]]:
        given = {"name": str(tiny_model), "device": "cpu", "dtype": "fp32", **model}
        settings = resolve({"dataset": {"source": str(tiny_folder), "label": "folder"}, "model": given})
        return set(open_run(settings, tmp_path / "run").compiled_shapes)

    assert shapes() == set()
    for worth, expected in ((160, {(8, 8)}), (161, set()), (96, {(8, 8), (8, 12)})):
        monkeypatch.setattr("typicality.run.WORTH", worth)
        assert shapes() == expected
    assert shapes(engine="torch") == set()
    monkeypatch.setattr("typicality.run.WORTH", 161)
    assert shapes(engine="openvino") == {(8, 8), (8, 12)}
    monkeypatch.setattr("typicality.run.WORTH", 96)
    monkeypatch.setattr(Checkpoint, "is_small", False)
    assert shapes() == set(), "not worth it for a large model"
    assert shapes(engine="openvino") == {(8, 8), (8, 12)}, "but what is asked for is done"


@pytest.mark.slow
def test_a_run_finds_the_same_elements_either_way(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The model as it is, adaptive scoring with a round and a refinement, in OpenVINO and in torch."""
    tables = []
    for engine in ("openvino", "torch"):
        settings = resolve(
            {
                "dataset": {"source": str(tiny_folder), "label": "folder"},
                "model": {"name": str(tiny_model), "device": "cpu", "dtype": "fp32", "engine": engine},
                "finetune": {"enabled": False},
                "score": {"precision": "fast"},
                "mine": {"per_label": 10, "clusters": 2, "noises": 2},
            }
        )
        result = mine(settings, tmp_path / engine)
        assert result.record["model"]["engine"] == engine
        tables.append(result.elements.to_pandas())
    one, other = tables
    where = ["image_id", "label", "x0", "y0", "x1", "y1", "cluster"]
    assert one[where].equals(other[where])
    np.testing.assert_allclose(one["typicality"], other["typicality"], rtol=1e-3, atol=1e-9)
    assert not one["typicality"].equals(other["typicality"])
