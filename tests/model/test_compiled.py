"""The compiled UNet: torch's predictions, for any number of inputs and prompts, and nothing told to anybody."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import tiny_checkpoint
from typicality.config import Engine, ModelSettings, resolve
from typicality.errors import SettingsError
from typicality.model import denoiser as module
from typicality.model import probe
from typicality.model.calibration import LabelUse
from typicality.model.checkpoint import Checkpoint
from typicality.model.compiled import PIECE, CompiledUNet, equivalent
from typicality.model.denoiser import Denoiser, may_compile
from typicality.model.unet import predict
from typicality.pipeline import ensure_model, mine
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


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_unet_that_sees_the_label_late_is_cut_there(blocks: int) -> None:
    """Within a decoder block, behind its first residual block."""
    checkpoint = tiny_checkpoint()
    checkpoint.label_use = LabelUse(blocks=blocks, null=PROMPTS[0])
    denoiser = Denoiser(checkpoint, CPU, torch.float32, [SHAPE])
    z, t = inputs(PIECE + 3)
    states = denoiser.encode_prompts(PROMPTS)
    found = denoiser.predict_noise(z, t, states)
    with denoiser.in_torch():
        expected = denoiser.predict_noise(z, t, states)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, expected)


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
        found = compiled.under(compiled.head(z, t), hidden)
        torch.testing.assert_close(found, predict(unet, z, t, hidden), rtol=1e-4, atol=1e-5)


def test_what_is_compiled_computes_the_same_in_fewer_operations() -> None:
    """In double precision the predictions are equal; the given UNet stays as it is, and lends its weights."""
    unet = tiny_checkpoint().unet
    modules = [type(module) for module in unet.modules()]
    z, t = inputs(3)
    hidden = torch.randn(3, 7, unet.config.cross_attention_dim)

    def operations(one: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            one(z, t, hidden)
        return counter.get_total_flops()

    other = equivalent(unet)
    assert other.conv_in.weight is unet.conv_in.weight
    assert operations(other) < operations(unet)
    assert [type(module) for module in unet.modules()] == modules
    assert [type(module) for module in other.modules()] != modules
    exact, z, hidden = unet.double(), z.double(), hidden.double()
    torch.testing.assert_close(equivalent(exact)(z, t, hidden).sample, exact(z, t, hidden).sample)


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
        ("auto", "cuda", torch.float32, False),
    ],
)
def test_a_cpu_compiles(engine: Engine, device: str, dtype: torch.dtype, compiles: bool) -> None:
    assert may_compile(engine, torch.device(device), dtype) == compiles


@pytest.mark.parametrize("arithmetic", [False, True])
def test_bfloat16_is_compiled_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, arithmetic: bool) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda: arithmetic)
    assert may_compile("auto", CPU, torch.bfloat16) == arithmetic


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    with pytest.raises(SettingsError, match="--dtype fp32"):
        may_compile("openvino", CPU, torch.bfloat16)
    monkeypatch.setattr(module, "is_available", lambda: False)
    assert not may_compile("auto", CPU, torch.float32)
    with pytest.raises(SettingsError, match=r"typicality\[cpu\]"):
        may_compile("openvino", CPU, torch.float32)


@pytest.mark.slow
def test_a_bfloat16_unet_is_compiled_and_stays_as_it_is() -> None:
    """Predictions are those of float32 but for rounding. Where a processor has bfloat16, OpenVINO's is four times that
    of torch (0.062 beside 0.016 of this model's predictions), which is why a run probes both before it takes one."""
    rounded = Denoiser(tiny_checkpoint(), CPU, torch.bfloat16, [SHAPE])
    z, t = inputs(PIECE + 3)
    states = rounded.encode_prompts(PROMPTS)
    found = rounded.predict_noise(z, t, states)
    assert found.dtype == torch.float32
    assert rounded.unet.dtype == torch.bfloat16
    exact = Denoiser(tiny_checkpoint(), CPU, torch.float32).predict_noise(z, t, states)
    assert (found - exact).norm() < 0.1 * exact.norm()
    with rounded.in_torch():
        by_torch = rounded.predict_noise(z, t, states)
    assert (by_torch - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("inside", ["f32", "bf16"])
def test_precision_is_told_to_the_compiler(monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    """Left to itself it would compute a float32 model in bfloat16 wherever a processor can."""
    import openvino

    told: list[str] = []
    compile_model = openvino.Core.compile_model

    def watched(core: Any, model: Any, device: str, options: dict[str, Any]) -> Any:
        told.append(options["INFERENCE_PRECISION_HINT"])
        return compile_model(core, model, device, options)

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    checkpoint = tiny_checkpoint()
    unet = checkpoint.unet.to(dtype=torch.bfloat16 if inside == "bf16" else torch.float32)
    CompiledUNet(unet, (4, *SHAPE), (7, unet.config.cross_attention_dim))
    assert told == [inside, inside]


@pytest.mark.parametrize(
    ("seconds", "error", "chosen"), [(1.0, 1.0, "torch"), (0.5, 1.0, "openvino"), (0.5, 2.0, "torch")]
)
def test_bfloat16_is_compiled_where_it_is_faster_and_no_less_exact(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, error: float, chosen: str
) -> None:
    """Seconds of a piece, and error of a shift, of OpenVINO where torch has 1 and 1."""
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(probe, "evaluation_of", lambda denoiser, _: denoiser)
    monkeypatch.setattr(probe, "timed", lambda denoiser, _: seconds if denoiser.compiled_shapes else 1.0)

    def shift(denoiser: Denoiser, _: int) -> torch.Tensor:
        if denoiser.dtype == torch.float32:
            return torch.zeros(3)
        return torch.full((3,), error if denoiser.compiled_shapes else 1.0)

    monkeypatch.setattr(probe, "_shift", shift)
    settings = ModelSettings(name=str(tiny_model), offline=True)
    base = tiny_checkpoint()
    assert probe.chosen_engine(settings, CPU, torch.bfloat16, base) == chosen
    asked = settings.model_copy(update={"engine": "openvino"})
    assert probe.chosen_engine(asked, CPU, torch.bfloat16, base) == "openvino"
    declined = settings.model_copy(update={"engine": "torch"})
    assert probe.chosen_engine(declined, CPU, torch.bfloat16, base) == "torch"


@pytest.mark.slow
def test_the_probe_of_bfloat16_measures(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real evaluations, however fast: of any error OpenVINO is taken, and of none it is not, for it has some."""
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(probe, "SECONDS", 0.05)
    settings = ModelSettings(name=str(tiny_model), offline=True)
    monkeypatch.setattr(probe, "FASTER", np.inf)
    for coarser, better in ((np.inf, True), (0.0, False)):
        monkeypatch.setattr(probe, "COARSER", coarser)
        assert probe.is_compiled_better(settings, CPU, torch.bfloat16) is better
    states = [Denoiser(tiny_checkpoint(), CPU, dtype) for dtype in (torch.float32, torch.bfloat16)]
    exact, rounded = (probe._shift(one, 8) for one in states)
    assert 0 < (exact - rounded).norm() < 0.2 * exact.norm()


def test_a_run_remembers_what_the_probe_found(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another answer of the probe, when the run goes on, is not asked for."""
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    monkeypatch.setattr("typicality.run.WORTH", 1)
    asked: list[LabelUse] = []
    monkeypatch.setattr("typicality.run.chosen_engine", lambda *given: asked.append(given[-1]) or "torch")
    given = {"name": str(tiny_model), "device": "cpu", "dtype": "bf16"}
    settings = resolve(
        {"dataset": {"source": str(tiny_folder), "label": "folder"}, "model": given, "finetune": {"enabled": False}}
    )
    run = open_run(settings, tmp_path / "run")
    ensure_model(run)
    late = open_run(
        resolve(settings.model_dump(), {"finetune": {"enabled": True, "label_blocks": 1}}), tmp_path / "late"
    )
    assert late.engine == "torch"
    assert asked == [LabelUse(), LabelUse(1.0, 1, late.prompts.null)]  # the probe is of what will score
    monkeypatch.setattr("typicality.run.chosen_engine", lambda *_: pytest.fail("it is known"))
    again = open_run(settings, tmp_path / "run")
    assert again.compiled_shapes == frozenset()
    assert again.directory.record["engines"] == {"torch.bfloat16": "torch"}


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
