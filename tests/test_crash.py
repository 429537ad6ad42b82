"""Killed at any moment, or with a full disk, a run continues and ends with the tables of an undisturbed one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

import typicality
from typicality.errors import OutputError
from typicality.store import RunDirectory, is_full_disk, write_arrays, write_table, write_text

KILLS = 20
STAGES = ("latents", "finetune", "score", "select", "refine", "mine", "report")
TABLES = ("elements.parquet", "clusters.parquet", "images.parquet")
QUICK: dict[str, Any] = {
    "finetune": {"steps": 6, "batch_size": 8, "validate_every": 2},
    "score": {"draws": 4, "refine_draws": 8, "shard_images": 4, "batch_size": 16},
    "mine": {"noises": 2, "share": 1.0, "per_label": 40},
    "dtype": "fp32",
}
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "x" * 100_000),
    "table": lambda path: write_table(path, pa.table({"x": np.random.default_rng(0).random(50_000)})),
    "arrays": lambda path: write_arrays(path, {"x": np.zeros(100_000)}),
}


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the kernel refuses the rest, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_does_not_fit_leaves_the_old_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("as before")
    with small_disk(4096), pytest.raises(OutputError, match="make room, and the same command continues"):
        WRITERS[kind](path)
    assert path.read_text() == "as before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_which_errors_mean_a_full_disk() -> None:
    assert is_full_disk(OSError(errno.ENOSPC, "No space left on device"))
    assert is_full_disk(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not is_full_disk(SafetensorError("header too large"))


def test_what_killed_processes_left_half_written_is_removed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    left = directory.path("scores", "pass", ".a.safetensors.host.1.tmp")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    whole = left.with_name("b.parquet")
    whole.write_bytes(b"whole")
    with directory.lock():
        assert not left.exists()
        assert whole.exists()


def mine(folder: Path, model: Path, out: Path) -> None:
    typicality.mine(folder, "folder", model=str(model), out=out, **QUICK)


def content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: repr(pq.read_table(run / name).to_pydict()) for name in TABLES}  # NaN != NaN
    found["features"] = (run / "features.npy").read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    start(mine, tiny_folder, tiny_model, run).join()
    return run


def refused_once(folder: Path, model: Path, out: Path, call: int) -> None:
    """Mine on a disk that is full at the n-th file; exit code 2 where that is said as an error of the user."""
    calls = 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    try:
        with mock.patch("typicality.store.os.fsync", fsync):
            mine(folder, model, out)
    except OutputError as error:
        os._exit(2 if "No space left on device" in str(error) else 1)


@pytest.mark.slow
@pytest.mark.parametrize("call", [3, 9, 14, 20, 27])
def test_a_disk_that_is_full_once(
    undisturbed: Path, tiny_folder: Path, tiny_model: Path, tmp_path: Path, call: int
) -> None:
    """The n-th file does not fit. The run says so, and when there is room it ends like an undisturbed one.

    All in children with one thread each: sums in another number of threads differ in the last bit.
    """
    process = start(refused_once, tiny_folder, tiny_model, tmp_path / "run", call)
    process.join()
    assert process.exitcode == 2
    start(mine, tiny_folder, tiny_model, tmp_path / "run").join()
    assert content(tmp_path / "run") == content(undisturbed)


def limited(folder: Path, model: Path, out: Path, size: int) -> None:
    """Mine on a small disk; exit code 2 where that is said as an error of the user."""
    with small_disk(size):
        try:
            mine(folder, model, out)
        except OutputError:
            os._exit(2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [12_000, 60_000, 150_000])
def test_a_disk_that_is_too_small(
    undisturbed: Path, tiny_folder: Path, tiny_model: Path, tmp_path: Path, size: int
) -> None:
    """Wherever the first file is that does not fit (shards, the model, the report), it is an error of the user."""
    process = start(limited, tiny_folder, tiny_model, tmp_path / "run", size)
    process.join()
    assert process.exitcode == 2
    start(mine, tiny_folder, tiny_model, tmp_path / "run").join()
    assert content(tmp_path / "run") == content(undisturbed)


def start(work: Callable[..., None], *arguments: Any) -> Any:
    """Run `work` in a child of a server that has imported everything: quick to start, safe to kill."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["typicality.api", "tests.test_crash"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def stages_of(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    return json.loads(path.read_text())["stages"] if path.exists() else {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(
    undisturbed: Path, tiny_folder: Path, tiny_model: Path, tmp_path: Path, seed: int
) -> None:
    """SIGKILL at a random moment of each stage in turn; the same call then ends with the very same tables."""
    chance = random.Random(seed)
    usual = stages_of(undisturbed)
    stages = [stage for stage in STAGES if stage in usual]
    stage = stages[seed % len(stages)]
    moment = chance.random() * float(usual[stage]["seconds"])
    run = tmp_path / "run"
    process = start(mine, tiny_folder, tiny_model, run)
    while stage not in stages_of(run):
        assert process.is_alive()
        time.sleep(0.005)
    time.sleep(moment)
    process.kill()
    process.join()
    again = start(mine, tiny_folder, tiny_model, run)
    again.join()
    assert again.exitcode == 0
    assert content(run) == content(undisturbed)
    assert not list(run.rglob("*.tmp"))
