"""Several processes: disjoint shares, barriers that do not hang, and the same tables as one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from typicality.errors import InputError
from typicality.processes import ALONE, Processes, is_main, processes_here

OPTIONS = (
    "--label", "folder", "--dtype", "fp32", "--json", "--quiet",
    "--set", "finetune.steps=4", "--set", "finetune.batch_size=8", "--set", "finetune.validate_every=2",
    "--set", "score.draws=2", "--set", "score.refine_draws=4", "--set", "score.shard_images=8",
    "--set", "score.batch_size=16", "--set", "mine.noises=2", "--set", "mine.per_label=40", "--set", "mine.share=1.0",
)  # fmt: skip
TABLES = ("elements.parquet", "clusters.parquet", "images.parquet")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_disjoint_and_together_everything(count: int) -> None:
    """11 pieces over 3 processes: 4, 4 and 3 of them."""
    work = list(range(11))
    shares = [Processes(rank, count).share(work) for rank in range(count)]
    assert sorted(piece for share in shares for piece in share) == work
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert processes_here() == ALONE
    assert ALONE.main
    assert is_main()
    assert ALONE.total(5) == 5
    ALONE.wait()


def test_others_that_cannot_be_reached_are_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that gives a rank but no address."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="accelerate launch"):
        processes_here()
    assert not is_main()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def begin(words: list[str], rank: int = 0, count: int = 1, port: int = 0) -> subprocess.Popen[str]:
    """Start one process as a launcher would; without one there is nobody who ends the others."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if count > 1:
        environment |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def mine(folder: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "typicality.cli", "mine", str(folder), "--model", str(model), "--out", str(out),
        *OPTIONS, *more,
    ]  # fmt: skip


def finish(*started: subprocess.Popen[str]) -> list[tuple[str, str]]:
    found = [process.communicate(timeout=300) for process in started]
    for process, (_, errors) in zip(started, found, strict=True):
        assert process.returncode == 0, errors
    return found


def tables(run: Path) -> list[str]:
    """The tables as text: unknown values are NaN, and a NaN is not equal to itself."""
    return [repr(pq.read_table(run / name).to_pydict()) for name in TABLES]


BARRIER = """
import sys, time
from typicality.errors import InterruptedRun
from typicality.processes import processes_here
processes = processes_here()
assert processes.total(processes.rank + 1) == 3
print("joined", flush=True)
time.sleep(3600 if processes.main else 0)
try:
    processes.wait()
except InterruptedRun as stop:
    sys.exit(str(stop))
"""


@pytest.mark.slow
def test_a_process_that_dies_does_not_leave_the_others_waiting() -> None:
    """Rank 0 is killed while rank 1 waits at a barrier, with no launcher to end it: rank 1 ends by itself."""
    port = free_port()
    first, second = (begin([sys.executable, "-c", BARRIER], rank, 2, port) for rank in range(2))
    assert second.stdout is not None
    assert second.stdout.readline() == "joined\n"
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    _, errors = second.communicate(timeout=60)
    first.communicate()
    assert second.returncode == 1
    assert "another process of this run has ended" in errors


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_two_processes_end_with_the_tables_of_one(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, engine: str
) -> None:
    """The same numbers to the last bit; one document on stdout; evaluations counted over both."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    by = ("--set", f"model.engine={engine}")
    finish(begin(mine(tiny_folder, tiny_model, tmp_path / "one", *by)))
    port = free_port()
    words = mine(tiny_folder, tiny_model, tmp_path / "two", *by)
    (main, _), (other, _) = finish(*(begin(words, rank, 2, port) for rank in range(2)))
    assert tables(tmp_path / "two") == tables(tmp_path / "one")
    assert (tmp_path / "two/features.npy").read_bytes() == (tmp_path / "one/features.npy").read_bytes()
    assert other == ""
    stages = json.loads(main)["stages"]
    one = json.loads((tmp_path / "one/run.json").read_text())["stages"]
    assert stages["score"]["unet_evaluations"] == one["score"]["unet_evaluations"] == 32 * 2 * 2
    assert stages["refine"]["unet_evaluations"] == one["refine"]["unet_evaluations"]


@pytest.mark.slow
def test_a_run_of_two_that_was_killed_is_continued_by_one(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Both are killed when a first shard is there; a single process ends with the tables of an undisturbed run."""
    finish(begin(mine(tiny_folder, tiny_model, tmp_path / "one")))
    port = free_port()
    words = mine(tiny_folder, tiny_model, tmp_path / "two", "--set", "score.shard_images=2")
    started = [begin(words, rank, 2, port) for rank in range(2)]
    while not list((tmp_path / "two").glob("scores/*/*.parquet")):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    record = json.loads((tmp_path / "two/run.json").read_text())
    assert record["stages"]["score"]["state"] == "running"
    finish(begin(mine(tiny_folder, tiny_model, tmp_path / "two")))
    assert tables(tmp_path / "two") == tables(tmp_path / "one")


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_ends_all(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A folder that holds something else: the main process says so (exit code 2), the other one does not wait."""
    (tmp_path / "thesis.txt").write_text("years of work")
    port = free_port()
    words = mine(tiny_folder, tiny_model, tmp_path)
    started = [begin(words, rank, 2, port) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [2, 130]
    assert "not empty" in errors[0]
    assert "another process of this run has ended" in errors[1]


@pytest.mark.slow
def test_devices_that_differ_are_refused(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Processes with batches of different sizes would divide the images differently, and leave some out."""
    port, words = free_port(), mine(tiny_folder, tiny_model, tmp_path / "run")
    started = [begin([*words, "--set", f"score.batch_size={8 + rank}"], rank, 2, port) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert "devices of these processes differ" in errors[0]
    assert not (tmp_path / "run").exists()
