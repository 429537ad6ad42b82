"""What of a run may be reused: not the model of another split, not the maps of another model, not a growing data set's.

The data set has two labels of 16 images each and a column `photographer`, of whom each took four of either label.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import typicality
from tests.applications.mined import change_record
from tests.conftest import draw
from typicality import run as run_module
from typicality.api import settings_for
from typicality.checks import check_model
from typicality.config import Dtype
from typicality.errors import CheckpointError, InterruptedRun, OutputError, SettingsError
from typicality.model import checkpoint as checkpoint_module
from typicality.model.calibration import LabelUse
from typicality.model.denoiser import choose_dtype
from typicality.model.finetune import Finetuner
from typicality.pipeline import Result
from typicality.plan import controls_of, first_jobs
from typicality.progress import Progress
from typicality.renewal import renew_report
from typicality.run import Run, existing_record, open_finished, open_run
from typicality.scoring.effort import effort_of
from typicality.store import remove

QUICK: dict[str, Any] = {
    "finetune": {"steps": 2, "batch_size": 4, "validation_images": 2},
    "score": {"protocol": "paper", "draws": 2},
    "mine": {"noises": 1, "share": 1.0, "per_label": 20, "clusters": 3},
    "dtype": "fp32",
}


class Said(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def options(model: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    return {n: v | changes.pop(n, {}) if isinstance(v, dict) else v for n, v in QUICK.items()} | {
        "model": str(model), **changes,
    }  # fmt: skip


def tabulate(source: Path) -> None:
    rows = [f"{p.relative_to(source).as_posix()},{int(p.stem) // 4}" for p in sorted(source.rglob("*.png"))]
    (source / "metadata.csv").write_text("\n".join(["file_name,photographer", *rows]) + "\n")


@pytest.fixture
def source(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "squares"
    shutil.copytree(tiny_folder, folder)
    tabulate(folder)
    return folder


@pytest.fixture(scope="module")
def mined(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and a run of it; tests take copies."""
    root = tmp_path_factory.mktemp("mined")
    shutil.copytree(tiny_folder, root / "squares")
    tabulate(root / "squares")
    typicality.mine(root / "squares", "folder", out=root / "run", **options(tiny_model))
    return root


@pytest.fixture
def copy(mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of the data set and of the run."""
    shutil.copytree(mined, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def mine(model: Path, **changes: Any) -> Result:
    return typicality.mine("squares", "folder", out="run", **options(model, **changes))


def add(source: Path, n: int = 2) -> None:
    rng = np.random.default_rng(5)
    for i in range(n):
        draw(rng, "red", (40, 40)).save(source / "red" / f"{20 + i}.png")
    tabulate(source)


def keys(result: Result, *stages: str) -> list[str]:
    return [result.record["stages"][stage]["key"] for stage in stages]


# --------------------------------------------------------------------------------------------------- groups


@pytest.mark.slow
def test_another_group_is_another_split(copy: Path, tiny_model: Path) -> None:
    """With --group photographer whole photographers are held out: the model of single images has seen them."""
    before = open_finished(Path("run"), "mine").directory.record["stages"]
    after = mine(tiny_model, dataset={"group": "photographer"})
    for stage in ("finetune", "score", "mine"):
        assert after.record["stages"][stage]["key"] != before[stage]["key"]
    sides: dict[str, set[bool]] = {}
    for row in after.images.to_pylist():
        sides.setdefault(row["group"], set()).add(row["held_out"])
    assert all(len(found) == 1 for found in sides.values())


@pytest.mark.slow
def test_another_group_is_tested_anew(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Without fine-tuning the maps stay; counts of groups and p-values do not."""
    runs = [
        typicality.mine(
            source, "folder", out=tmp_path / "run", **options(tiny_model, finetune={"enabled": False}, dataset=group)
        )
        for group in ({}, {"group": "photographer"})
    ]
    assert keys(runs[0], "score") == keys(runs[1], "score")
    assert keys(runs[0], "mine") != keys(runs[1], "mine")
    assert max(runs[1].clusters["n_groups"].to_pylist()) <= 4


@pytest.mark.slow
def test_a_label_that_is_not_trained_on_is_named(tmp_path: Path, tiny_model: Path) -> None:
    """One photographer a label, six of them: who is held out takes the only images of a label along."""
    rng, rows = np.random.default_rng(1), []
    for label in "abcdef":
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(3):
            draw(rng, "red", (40, 40)).save(tmp_path / "set" / label / f"{i}.png")
            rows.append(f"{label}/{i}.png,{label}")
    (tmp_path / "set" / "metadata.csv").write_text("\n".join(["file_name,photographer", *rows]) + "\n")
    said = Said()
    result = typicality.mine(
        tmp_path / "set", "folder", group="photographer", out=tmp_path / "run", progress=said, **options(tiny_model)
    )
    (warning,) = (w for w in result.record["stages"]["finetune"]["warnings"] if "No image of the label" in w)
    assert f"warning: {warning}" in said.lines
    assert warning[:-1] in (tmp_path / "run" / "index.html").read_text().replace("&#39;", "'")
    assert any(f"'{label}'" in warning for label in "abcdef")


# ------------------------------------------------------------------------------------------------- machines


@pytest.mark.slow
def test_a_run_keeps_its_precision_on_another_machine(
    copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mined where `auto` is float32, rendered, read and continued where it is bfloat16; and --dtype decides as ever."""
    automatic = [torch.float32]

    def choose(dtype: Dtype, device: torch.device) -> torch.dtype:
        return automatic[0] if dtype == "auto" else choose_dtype(dtype, device)

    monkeypatch.setattr(run_module, "choose_dtype", choose)
    monkeypatch.setattr("typicality.model.probe.has_bfloat16", lambda: True)
    before = mine(tiny_model, dtype="auto")
    automatic[0] = torch.bfloat16
    typicality.report("run")
    assert open_finished(Path("run"), "mine").dtype == torch.float32
    said = Said()
    after = typicality.mine("squares", "folder", out="run", progress=said, **options(tiny_model, dtype="auto"))
    assert keys(after, "finetune", "score", "mine") == keys(before, "finetune", "score", "mine")
    assert "precision: float32, as this run has had it; --dtype would set another" in said.lines
    other = open_run(settings_for("squares", "folder", **options(tiny_model, dtype="bf16")), Path("run"))
    assert other.dtype == torch.bfloat16
    fresh = open_run(settings_for("squares", "folder", **options(tiny_model, dtype="auto")), Path("run"), fresh=True)
    assert fresh.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("before", "bfloat16", "slow"), [("float16", True, True), ("bfloat16", False, True), ("bfloat16", True, False)]
)
def test_a_precision_that_is_slow_here_is_warned_about(
    copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, before: str, bfloat16: bool, slow: bool
) -> None:
    """Begun on a GPU or a Mac, where `auto` was a half precision, and continued on a CPU: what the way out would be."""
    monkeypatch.setattr("typicality.model.probe.has_bfloat16", lambda: bfloat16)
    change_record(Path("run"), lambda record: record["model"].update(dtype=before))
    settings = settings_for("squares", "folder", **options(tiny_model, dtype="auto", device="cpu"))
    run = open_run(settings, Path("run"), progress=(said := Said()))
    assert run.dtype == getattr(torch, before)
    warnings = [line for line in said.lines if line.startswith(f"warning: {before} is many times slower")]
    assert len(warnings) == slow
    assert all("--dtype fp32" in warning for warning in warnings)


@pytest.mark.slow
def test_a_precision_that_is_spelled_out_is_no_other(copy: Path, tiny_model: Path) -> None:
    """Mined in float32, which `auto` was: --dtype fp32 reads the run, renders it and renews its report; bf16 cannot."""
    run = open_finished(Path("run"), "mine", settings_for("run", dtype="auto"), said := Said())
    assert renew_report(run) == Path("run/index.html")
    assert not [line for line in said.lines if "report" in line]
    assert typicality.report("run", dtype="auto").elements.num_rows > 0
    with pytest.raises(OutputError, match="under other settings"):
        typicality.report("run", dtype="bf16")


@pytest.mark.slow
def test_an_automatic_model_stays_what_it_was(copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stable Diffusion that comes into the cache later, or a GPU, does not replace the model of a run."""
    resolved = [(str(tiny_model), "there is nothing else")]
    real = checkpoint_module.choose
    monkeypatch.setattr(checkpoint_module, "choose", lambda model: resolved[0] if model.name == "auto" else real(model))
    automatic = {**options(tiny_model), "model": "auto"}
    change_record(Path("run"), lambda record: record["model"].update(reason="there was nothing else"))
    before = typicality.mine("squares", "folder", out="run", **automatic)
    resolved[0] = ("nobody/has-this", "a CUDA device came")
    after = typicality.mine("squares", "folder", out="run", **automatic)
    assert keys(after, "finetune", "score", "mine") == keys(before, "finetune", "score", "mine")
    assert before.record["model"]["resolved"] == str(tiny_model)
    assert before.record["model"]["reason"] == after.record["model"]["reason"] == "there was nothing else"


# -------------------------------------------------------------------------------------------------- weights


@pytest.mark.slow
def test_maps_of_other_weights_are_not_reused(copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training anew under the first settings gives other weights where a clock ends it; here they are shifted."""
    first = open_finished(Path("run"), "mine").directory.record["stages"]["score"]
    mine(tiny_model, finetune={"steps": 1})
    with monkeypatch.context() as patched:
        save = Finetuner.save

        def shift_and_save(self: Finetuner, *arguments: Any, **named: Any) -> None:
            with torch.no_grad():
                self.checkpoint.unet.conv_out.bias += 0.1
            save(self, *arguments, **named)

        patched.setattr(Finetuner, "save", shift_and_save)
        shifted = mine(tiny_model)
    assert shifted.record["stages"]["score"]["key"] != first["key"]
    assert shifted.record["stages"]["score"]["unet_evaluations"] == 32 * 2 * 2


@pytest.mark.slow
def test_maps_of_equal_weights_are_reused(copy: Path, tiny_model: Path) -> None:
    """The same training ends with the same weights, so that the first maps still hold."""
    first = open_finished(Path("run"), "mine").directory.record["stages"]["score"]
    mine(tiny_model, finetune={"steps": 1})
    again = mine(tiny_model)
    assert again.record["stages"]["score"]["key"] == first["key"]
    assert again.record["stages"]["score"].get("unet_evaluations", 0) == 0


# ------------------------------------------------------------------------------------------------ in-sample


def opened(source: str, model: Path, out: str, **finetune: Any) -> Run:
    return open_run(settings_for(source, "folder", **options(model, finetune=finetune)), Path(out))


def test_a_model_of_another_run_has_seen_labels(copy: Path, tiny_model: Path) -> None:
    """Scored with a run's model, these very images are in-sample: no controls, nothing held out, and a warning.

    The same is true of folds that begin with it. The base that was not fine-tuned has seen no label.
    """
    for out, finetune in (("a", {"enabled": False}), ("b", {"folds": 2})):
        run = opened("squares", Path("run/model"), out, **finetune)
        assert not run.cross_fitted
        assert controls_of(run.settings, run.dataset) == {}
        assert all(len(job.labels) == 1 for job in first_jobs(run.settings, run.dataset))
        assert not run.held_out
        assert any("in-sample" in warning for warning in run.warnings())
        other = opened("squares", tiny_model, f"{out}-base", **finetune)
        assert other.cross_fitted
        assert len(other.held_out) == 32
        assert not any("in-sample" in warning for warning in other.warnings())


def test_an_adapter_of_another_run_has_seen_labels(copy: Path, tiny_model: Path) -> None:
    """By its file or its folder: an adapter that was fine-tuned here is in-sample, and no run replaces its own."""
    weights = Path("run/model/pytorch_lora_weights.safetensors")
    weights.touch()
    for lora in (weights, weights.parent):
        model = {"name": str(tiny_model), "lora": str(lora)}
        run = open_run(settings_for("squares", "folder", model=model, finetune={"enabled": False}), Path("a"))
        assert not run.cross_fitted
        assert run.trained_on is None
        with pytest.raises(SettingsError, match="this run would replace it"):
            check_model(open_run(settings_for("squares", "folder", model=model), Path("run")))


# ------------------------------------------------------------------------------------------- what has gone


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["model", "model/unet/diffusion_pytorch_model.safetensors"])
def test_a_model_that_has_gone_is_made_again(copy: Path, tiny_model: Path, lost: str) -> None:
    """Somebody made room: the same model is trained once more, the maps of its weights hold, and more can be drawn."""
    before = open_finished(Path("run"), "mine").directory.record["stages"]
    weights = {path: path.read_bytes() for path in Path("run/model").rglob("*.safetensors")}
    remove(Path("run", lost))
    again = typicality.mine("squares", "folder", out="run", progress=(said := Said()), **options(tiny_model))
    assert "the model that was fine-tuned is no longer there: fine-tuning anew" in said.lines
    assert {path: path.read_bytes() for path in Path("run/model").rglob("*.safetensors")} == weights
    assert again.record["stages"]["score"] == before["score"]
    more = mine(tiny_model, score={"draws": 4})
    assert more.record["stages"]["score"]["unet_evaluations"] == 32 * 2 * 4


def test_a_model_that_has_gone_cannot_be_kept(copy: Path, tiny_model: Path) -> None:
    """Nothing is begun then, and no setting is recorded."""
    shutil.rmtree("run/model")
    before = Path("run/run.json").read_bytes()
    with pytest.raises(OutputError, match=r"run/model no longer holds the model .* leave out --keep-model"):
        mine(tiny_model, finetune={"keep": True})
    assert Path("run/run.json").read_bytes() == before


def test_a_folder_that_has_gone_is_no_model_of_a_hub(copy: Path) -> None:
    """`run/model` has the form of one."""
    shutil.rmtree("run/model")
    with pytest.raises(CheckpointError, match=rf"no model folder '{copy}/run/model'"):
        _ = open_finished(Path("run"), "mine").denoiser


@pytest.mark.slow
def test_shards_that_have_gone_are_made_again(copy: Path, tiny_model: Path) -> None:
    """Half of the maps are lost, then all: what is mined of them is what it was, and nothing is silently left out."""
    before = repr(pq.read_table("run/elements.parquet").to_pydict())
    for lost in ("*/*.safetensors", "*"):
        path = next(Path("run/scores").glob(lost))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        Path("run/elements.parquet").unlink()
        assert repr(mine(tiny_model).elements.to_pydict()) == before
    assert pq.read_table("run/images.parquet").num_rows == 32


def test_a_report_does_not_show_maps_of_other_draws(copy: Path) -> None:
    """The maps of the elements have gone: nothing takes their place until `mine` makes them again."""
    for path in Path("run/scores").glob("*/*.safetensors"):
        path.unlink()
    with pytest.raises(OutputError, match="`typicality mine` makes them again"):
        typicality.report("run")


# -------------------------------------------------------------------------------------------- added images


@pytest.mark.slow
def test_added_images_are_scored_by_the_model_that_was_kept(copy: Path, tiny_model: Path) -> None:
    """2 new images, null prompt and label, 2 draws; the model and the old maps stay, and the report says so."""
    before = open_finished(Path("run"), "mine").directory.record["stages"]
    shards = {p: p.stat().st_mtime_ns for p in Path("run/scores").rglob("*.safetensors")}
    add(copy / "squares")
    result = mine(tiny_model, finetune={"keep": True})
    stages = result.record["stages"]
    assert stages["finetune"] == before["finetune"]
    assert stages["score"]["unet_evaluations"] == 2 * 2 * 2
    assert {p: p.stat().st_mtime_ns for p in shards} == shards
    assert result.images.num_rows == 34
    assert result.record["model"]["images_since"] == 2
    assert "2 of 34 images were added" in result.report.read_text()
    assert typicality.classify(result.folder, draws=2).n > 0


def test_without_being_asked_the_model_is_made_anew(copy: Path, tiny_model: Path) -> None:
    before = open_finished(Path("run"), "mine").directory.record["stages"]
    add(copy / "squares")
    said = Said()
    result = typicality.mine("squares", "folder", out="run", progress=said, **options(tiny_model))
    assert any("fine-tuning anew" in line and "--keep-model" in line for line in said.lines)
    assert result.record["stages"]["finetune"]["key"] != before["finetune"]["key"]
    assert "images_since" not in result.record["model"]


def test_a_model_that_cannot_be_kept_is_not_replaced(copy: Path, tiny_model: Path) -> None:
    """Other steps, an image that has changed its label, a label that is new: the model does not belong to these."""
    weights = {p: p.stat().st_mtime_ns for p in Path("run/model").rglob("*")}
    with pytest.raises(SettingsError, match="other settings"):
        mine(tiny_model, finetune={"keep": True, "steps": 3})
    shutil.move("squares/red/3.png", "squares/blue/33.png")
    tabulate(copy / "squares")
    with pytest.raises(SettingsError, match=r"labels or groups of 1 images have changed, first blue/33\.png"):
        mine(tiny_model, finetune={"keep": True})
    shutil.move("squares/blue/33.png", "squares/red/3.png")
    Path("squares/green").mkdir()
    add(copy / "squares")
    shutil.move("squares/red/20.png", "squares/green/20.png")
    tabulate(copy / "squares")
    with pytest.raises(SettingsError, match="labels"):
        mine(tiny_model, finetune={"keep": True})
    assert {p: p.stat().st_mtime_ns for p in Path("run/model").rglob("*")} == weights


# ------------------------------------------------------------------------------------------ calls that were stopped


class Stops(Progress):
    """Ctrl-C as soon as a stage of a name begins."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def start(self, stage: str, total: int) -> None:
        if stage.startswith(self.stage):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_rerun_that_was_stopped_does_not_pass_for_finished(copy: Path, tiny_model: Path) -> None:
    """Other settings were recorded and not carried out: the report of old tables is refused, and finishing helps."""
    with pytest.raises(InterruptedRun):
        mine(tiny_model, score={"draws": 4}, progress=Stops("score"))
    for reader in (lambda: typicality.report("run"), lambda: open_finished(Path("run"), "mine")):
        with pytest.raises(OutputError, match=r"under other settings.*typicality mine run"):
            reader()
    typicality.mine("run")
    assert typicality.report("run").elements.num_rows > 0


def test_a_report_that_is_refused_leaves_the_run_as_it_was(copy: Path) -> None:
    """`report` with settings that only `mine` can carry out must not make them the run's own; `mine` is to get them."""
    refusal = r"under other settings .*leave out what this call changes, or give it to `typicality mine"
    with pytest.raises(OutputError, match=refusal):
        typicality.report("run", mine={"clusters": 2})
    assert typicality.report("run").elements.num_rows > 0


def test_settings_that_change_nothing_are_no_other_settings(copy: Path, tiny_model: Path) -> None:
    mine(tiny_model, score={"batch_size": 3})
    assert open_finished(Path("run"), "mine").settings.score.batch_size == 3


@pytest.mark.slow
def test_the_training_state_goes_when_the_model_is_recorded(
    copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between writing the model and recording it, the same call trains no further step."""
    with monkeypatch.context() as patched:
        patched.setattr("typicality.pipeline.hash_of_files", raise_interrupt)
        with pytest.raises(InterruptedRun):
            mine(tiny_model, finetune={"steps": 4})
    assert list(Path("run/training").glob("*/state.json"))
    monkeypatch.setattr(Finetuner, "train_step", lambda *_: pytest.fail("trained again"))
    assert mine(tiny_model, finetune={"steps": 4}).record["stages"]["finetune"]["steps"] == 4
    assert not list(Path("run/training").glob("*/"))


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_another_process_recorded_is_not_written_over(copy: Path) -> None:
    run, other = open_finished(Path("run"), "mine"), open_finished(Path("run"), "mine")
    with other.directory.lock(), other.directory.stage("trends", "key"):
        pass
    with run.directory.lock(), run.directory.stage("translate", "key"):
        pass
    assert {"trends", "translate", "mine"} <= set(existing_record("run")["stages"])


# ----------------------------------------------------------------------------------------------- other contents


def test_images_of_which_none_is_known_do_not_replace_a_run(copy: Path, tiny_model: Path) -> None:
    """A data set of the same name and label, and no image in common."""
    rng = np.random.default_rng(9)
    for path in Path("squares").rglob("*.png"):
        draw(rng, path.parent.name, (40, 40)).save(path)
    with pytest.raises(OutputError, match=r"none of which is in this data set.*--fresh"):
        mine(tiny_model)
    assert mine(tiny_model, fresh=True).images.num_rows == 32


def test_names_are_those_of_the_files_as_they_are(copy: Path, tiny_model: Path) -> None:
    Path("squares/red/3.png").rename("squares/red/other.png")
    tabulate_names = Path("squares/metadata.csv")
    tabulate_names.write_text(tabulate_names.read_text().replace("red/3.png", "red/other.png"))
    result = mine(tiny_model)
    names = {row["image_id"]: row["file_name"] for row in result.images.to_pylist()}
    assert all(names[e["image_id"]] == e["file_name"] for e in result.elements.to_pylist())


@pytest.mark.slow
def test_specificity_does_not_depend_on_what_was_scored_before(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Four labels: scored against three others first and against one then, as against one at once."""
    source = tmp_path / "squares"
    for i, path in enumerate(sorted(tiny_folder.rglob("*.png"))):
        (source / f"label{i % 4}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / f"label{i % 4}" / f"{i}.png")
    adaptive = {"protocol": "adaptive", "draws": 2, "refine_draws": 2, "rounds": 0}

    def specificity(out: str, *contrasts: int) -> list[float]:
        for contrast in contrasts:
            found = typicality.mine(
                source, "folder", out=tmp_path / out, **options(tiny_model, score=adaptive | {"contrast": contrast})
            )
        return found.elements["specificity"].to_pylist()

    assert specificity("both", 3, 1) == specificity("one", 1)


def test_impossible_settings_are_refused_before_any_work(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    for wrong, said in (({"patch": 1000}, "larger than the image"), ({"up_block": 9}, "has the blocks")):
        with pytest.raises(SettingsError, match=said):
            typicality.mine(tiny_folder, "folder", out=tmp_path / "run", **options(tiny_model, mine=wrong))
    late = options(tiny_model, finetune={"label_blocks": 9})
    with pytest.raises(SettingsError, match="it takes 1 to 3, or 0"):
        typicality.mine(tiny_folder, "folder", out=tmp_path / "run", **late)
    assert not list(tmp_path.rglob("*.safetensors"))


# ---------------------------------------------------------------------------------- what a later call refuses


@pytest.mark.slow
def test_groups_that_were_renamed_are_another_split(copy: Path, tiny_model: Path) -> None:
    """Images that the model has learned would count as held out: accuracy would be that of learning by heart."""
    mine(tiny_model, dataset={"group": "photographer"})
    table = Path("squares/metadata.csv")
    names = {row["file_name"] for row in mine(tiny_model, dataset={"group": "photographer"}).images.to_pylist()}
    table.write_text(re.sub(r",(\d)$", r",someone else \1", table.read_text(), flags=re.MULTILINE))
    with pytest.raises(SettingsError, match=r"groups of \d+ images have changed"):
        typicality.evaluate_classify("run", draws=2)
    again = mine(tiny_model, dataset={"group": "photographer"})
    assert {row["file_name"] for row in again.images.to_pylist()} == names
    assert typicality.evaluate_classify("run", draws=2).n > 0


@pytest.mark.slow
def test_a_report_is_of_the_images_that_were_mined(copy: Path, tiny_model: Path) -> None:
    """Others would be shown as if nothing were typical of them, and run.json would say that they had been mined."""
    mine(tiny_model)
    before = Path("run/run.json").read_bytes()
    add(Path("squares"))
    with pytest.raises(OutputError, match="have changed since run was mined; `typicality mine run`"):
        typicality.report("run")
    assert Path("run/run.json").read_bytes() == before
    assert typicality.audit("run", images_only=True).document["dataset"]["n_images"] == 34
    mine(tiny_model)
    assert typicality.report("run").images.num_rows == 34


@pytest.mark.slow
def test_a_report_shows_what_took_part(copy: Path, tiny_model: Path) -> None:
    """After --no-finetune no curves of a model that was not used; the stages are those of these settings, in order."""

    def stages_shown(result: Result) -> list[str]:
        page = result.report.read_text()
        table = page[page.index("Stages of the run") :]
        return re.findall(r"<th[^>]*scope=.row.[^>]*>([^<]+)<|<tr><td>([^<]+)<", table[: table.index("</table>")])

    first = mine(tiny_model, score={"protocol": "adaptive"}, finetune={"steps": 4, "validate_every": 1})
    assert "What the model learned about labels" in first.report.read_text()
    second = mine(tiny_model, finetune={"enabled": False})
    assert "What the model learned about labels" not in second.report.read_text()
    names = ["".join(found) for found in stages_shown(second)]
    assert names == ["latents", "score", "mine"], names


@pytest.mark.slow
def test_the_report_knows_which_images_were_learned(copy: Path, tiny_model: Path) -> None:
    """Images that chose the step were not, nor those that came after a kept model was fine-tuned."""
    first = mine(tiny_model)
    held_out = {row["image_id"] for row in first.images.to_pylist() if row["held_out"]}
    known = {image.image_id for image in open_finished(Path("run"), "mine").dataset}
    learned = open_finished(Path("run"), "mine").trained_on or frozenset()
    assert len(known - held_out - learned) == QUICK["finetune"]["validation_images"]
    add(Path("squares"))
    mine(tiny_model, finetune={"keep": True})
    assert open_finished(Path("run"), "mine").trained_on == learned


def test_a_run_whose_last_blocks_see_the_label_keeps_that_with_its_model(
    source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Read back, the model predicts as it was trained; another number of blocks is another model."""
    late = {"finetune": {"label_blocks": 1}, "score": {"protocol": "adaptive", "draws": 4, "precision": "standard"}}
    result = typicality.mine(source, "folder", out=tmp_path / "run", **options(tiny_model, **late))
    run = open_finished(result.folder, "finetune")
    assert run.directory.record["stages"]["finetune"]["label_blocks"] == 1
    assert run.denoiser.checkpoint.label_use == LabelUse(run.denoiser.checkpoint.label_use.scale, 1, run.prompts.null)
    assert "the last decoder block alone sees the label" in (result.folder / "model" / "README.md").read_text()
    states = run.denoiser.encode_prompts(run.prompts.of_all(run.dataset.labels))
    images = [run.denoiser.features(torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8), 9, s[None], 1) for s in states]
    assert torch.equal(images[0], images[1])
    spent = run.directory.record["stages"]["refine"]["draws"]
    assert spent > effort_of(run.settings.score, 4).refine  # what is shared is spent on draws
    before = run.finetune_key
    other = open_run(settings_for(source, "folder", **options(tiny_model, finetune={"label_blocks": 0})), result.folder)
    assert other.finetune_key != before
