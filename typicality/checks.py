"""What is refused before any work: nothing has been recorded or removed then (`Run.begin`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from typicality.config import Settings, resolve, settings_key
from typicality.errors import OutputError, SettingsError
from typicality.mining.patches import patch_side
from typicality.model.denoiser import (
    cells_at_once,
    check_up_block,
    choose_device,
    choose_dtype,
    precision_of,
    prompt_tokens,
)
from typicality.model.recipe import label_use_after
from typicality.processes import Processes
from typicality.run import Run
from typicality.scoring.shards import ScoreReader


def check_settings(run: Run) -> None:
    """Refuse, before any work, what only the loaded model can tell to be impossible.

    Raises
    ------
    SettingsError : for a patch larger than the image, blocks that the UNet does not have, or prompts that the
        tokenizer cannot hold or tell apart.
    """
    base, mine = run.base, run.settings.mine
    patch_side(run.latents.short_side, mine.patch, base.factor)
    check_up_block(base.unet, mine.up_block)
    label_use_after(run.settings.finetune, base, run.prompts.null)
    prompt_tokens(base.tokenizer, run.prompts.of_all(run.dataset.labels))


def check_model(run: Run) -> None:
    """Refuse too few groups for the folds, models that cannot be kept, and to replace the model that is fine-tuned."""
    folder, model = run.directory.folder.resolve(), run.settings.model
    for name in (model.name, model.lora):
        within = name is not None and Path(name).exists() and Path(name).resolve().is_relative_to(folder)
        if within and (run.directory.fresh or run.settings.finetune.enabled):
            raise SettingsError(
                f"the model {name} lies in {folder}, and this run would replace it: choose another --out"
            )
    if run.folds > 1:
        run.fold_of(next(iter(run.labels_of)))
    _ = run.finetune_key


def check_processes(settings: Settings, processes: Processes) -> None:
    """Refuse processes whose devices differ: they would divide the work differently, and leave some of it undone.

    Raises
    ------
    SettingsError
    """
    device = choose_device(settings.model.device)
    dtype = choose_dtype(settings.model.dtype, device)
    batch = settings.score.batch_size or f"as {cells_at_once(device, dtype)} latent cells allow"
    own = f"{device.type}, {precision_of(dtype)}, batches {batch}"
    if not processes.agree(own):
        raise SettingsError(
            f"the devices of these processes differ (here: {own}): give all the same --device, --dtype and "
            "--set score.batch_size=N, so small that each can do it"
        )


def check_maps(reader: ScoreReader, elements: pa.Table) -> None:
    """Refuse to show elements whose maps have gone beside those of other draws.

    Raises
    ------
    OutputError
    """
    if not reader.has_all(zip(elements["image_id"].to_pylist(), elements["label"].to_pylist(), strict=True)):
        raise OutputError(f"{reader.folder} has lost scores of the elements; `typicality mine` makes them again")


def check_current(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse elements of an earlier state of a run: images were scored anew, or settings changed, and not mined since.

    The tables of a run are then of two states. What is not recorded, as by earlier versions, counts as current.

    Parameters
    ----------
    record : run.json of the run directory `folder`

    Raises
    ------
    OutputError
    """
    entry = record["stages"].get("mine", {})
    remedy = f"run `typicality mine {folder}` first"
    if entry.get("state", "done") != "done":
        raise OutputError(f"{folder} has not been mined to the end; {remedy}")
    precision = record.get("model", {}).get("dtype")
    other = "settings" in entry and entry["settings"] != settings_key(resolve(record["settings"]), "mine")
    if other or entry.get("dtype", precision) != precision:
        raise OutputError(f"the elements of {folder} were mined under other settings than it has now; {remedy}")
    present = record.get("dataset", {}).get("fingerprint")
    if entry.get("fingerprint", present) != present:
        raise OutputError(f"images or labels of {folder} have changed since its elements were mined; {remedy}")
