"""The run directory: what is on disk, how it is written, and what may be reused.

Every file is written whole under a temporary name and then renamed, so a reader never sees half of one. A
stage is reused when `run.json` says that it is done under the same key; the key hashes everything the stage
depends on. One run at a time may write to a directory; of its processes only the main one writes `run.json`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import save_file

from typicality.errors import OutputError
from typicality.processes import ALONE, Processes

SCHEMA_VERSION = 1
VERSIONED = ("typicality", "torch", "diffusers", "transformers", "numpy", "faiss-cpu", "scikit-learn", "pillow")
OWNED = (
    "run.json", "model", "model.part", "latents", "scores", "elements.parquet", "clusters.parquet", "images.parquet",
    "features.npy", "index.faiss", "index.html", "grids", "assets", "training",
    "localization.parquet", "localize",
    "translate", "trends", "augment", "impute", "export", "evaluation",
    "findings.json", "findings.parquet", "labels.parquet",
)  # fmt: skip


def write_whole(path: Path, write: Any) -> None:
    """Call `write(temporary_path)`, flush it to disk and rename it to `path`.

    Raises
    ------
    OutputError : when the disk is full, or does not take the file for another reason; `path` is then as before.
    """
    # processes on other machines may have the same number and share the file system
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # below a regular file there is nothing to remove either
            temporary.unlink()


def cannot_write(path: Path, error: OSError | SafetensorError) -> OutputError:
    """Return the error that says why `path` was not written, and what to do about it."""
    remedy = (
        "what is finished is kept: make room, and the same command continues" if is_full_disk(error) else
        "choose a place that can be written"
    )  # fmt: skip
    return OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; {remedy}")


def check_writable(path: Path) -> None:
    """Refuse a path whose folder cannot be written, before the work whose result is to go there; nothing is made.

    Of folders that are missing the innermost that is there must take the others.

    Raises
    ------
    OutputError
    """
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: {folder} is no folder; choose a place that can be written")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: {folder} may not be written; choose a place that can be written")


def is_full_disk(error: OSError | SafetensorError) -> bool:
    """Return whether a write failed because nothing more fits: no space, a quota, or a limit on the size of files."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in codes
    return any(f"code: {code}" in str(error) or f"os error {code}" in str(error) for code in codes)


def remove(path: Path) -> None:
    """Remove a file or folder where it is there; of a link the link alone, for what it leads to may not be ours."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files below `folder` that killed processes have left, and half-written models."""
    for temporary in folder.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)
    for part in (folder / "model.part", *folder.glob("model/*.part")):
        shutil.rmtree(part, ignore_errors=True)


def write_table(path: Path, table: pa.Table) -> None:
    write_whole(path, lambda p: pq.write_table(table, p, compression="zstd"))


def write_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write named arrays as safetensors."""
    whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    write_whole(path, lambda p: save_file(whole, p, metadata=metadata))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as numpy does."""

    def save(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # np.save adds a suffix to the name of a file
            np.save(handle, array, allow_pickle=False)

    write_whole(path, save)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def json_text(document: Any) -> str:
    """Return a document as JSON that every reader takes: what is not a number, or infinite, becomes null."""
    return json.dumps(_finite(document), indent=2, default=str, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def write_json(path: Path, document: Any) -> None:
    write_text(path, json_text(document) + "\n")


def hash_of_files(folder: Path, *patterns: str) -> str:
    """Return a hash of all files below a folder whose names match a pattern, names included."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.rglob(pattern)}):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:32]


def peak_memory_mb() -> float:
    """Return the largest resident size this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return run.json of a run directory; None where `folder` has none, or one that no run wrote.

    Raises
    ------
    OutputError : when it cannot be read, or is of another version.
    """
    path = folder / "run.json"
    anew = f"start anew with `typicality mine DATASET --out {folder} --fresh`, or choose another --out"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:  # perhaps of a folder that no run has written
        raise OutputError(f"{path} may not be read: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}); {anew}") from error
    if not isinstance(record, dict) or not {"schema_version", "stages"} <= set(record):
        return None
    if record["schema_version"] != SCHEMA_VERSION:
        raise OutputError(f"{folder} was written by another version (schema {record['schema_version']}); {anew}")
    return record


def foundation(record: Mapping[str, Any], stages: Iterable[str]) -> dict[str, str | None]:
    """Return which state of each stage run.json records: the hash of its weights, or its key; None where it is absent.

    What an application has found is of an earlier state of the run where this has changed since. A model that was
    fine-tuned once plays no part where fine-tuning is switched off.
    """
    tunes = record.get("settings", {}).get("finetune", {}).get("enabled", True)
    done = {name: entry for name, entry in record.get("stages", {}).items() if tunes or name != "finetune"}
    entries = {name: done.get(name, {}) for name in stages}
    return {name: entry.get("weights") or entry.get("key") for name, entry in entries.items()}


class RunDirectory:
    """One run on disk.

    Parameters
    ----------
    folder : made when missing
    processes : those of the run; only the main one writes the record
    fresh : do not read what is there, for it is going to be cleared, see `Run.begin`

    Raises
    ------
    OutputError : when the folder cannot be written, or holds files that no run wrote.
    """

    def __init__(self, folder: Path, processes: Processes = ALONE, fresh: bool = False) -> None:
        self.folder, self.processes, self.fresh = folder, processes, fresh
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # of this process alone: those of a run, on several machines perhaps, and other calls begin at once
            probe = folder / f".write-probe.{socket.gethostname()}.{os.getpid()}.tmp"
            probe.touch()
            probe.unlink(missing_ok=True)  # removed by another run that cleared up what killed ones had left
        except OSError as error:
            raise OutputError(f"cannot write to the run directory {folder}: {error.strerror}; choose --out") from error
        if not self._may_be_used(fresh):
            raise OutputError(f"{folder} is not empty and holds no run; choose another --out, so that nothing is lost")
        self.record: dict[str, Any] = self._empty() if fresh else self._read()

    @property
    def record_path(self) -> Path:
        return self.folder / "run.json"

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def _may_be_used(self, fresh: bool) -> bool:
        """Whether nothing here could be lost: a run, or nothing at all. Not every run.json is a run's.

        Runs write their record before anything else, and so a `model` or an `assets` without it is somebody's.
        """
        others = [p.name for p in self.folder.iterdir() if not p.name.startswith((".lock", ".write-probe"))]
        try:
            return read_record(self.folder) is not None or all(name.endswith(".tmp") for name in others)
        except OutputError:
            if not fresh:
                raise
            return all(name in OWNED or name.endswith(".tmp") for name in others)

    @staticmethod
    def _empty() -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "stages": {}}

    def _read(self) -> dict[str, Any]:
        return read_record(self.folder) or self._empty()

    def save(self) -> None:
        """Write run.json with the versions of the packages that matter; only the main process does."""
        if not self.processes.main:
            return
        self.record["versions"] = {"python": platform.python_version()} | {
            name: importlib.metadata.version(name) for name in VERSIONED
        }
        write_json(self.record_path, self.record)

    def reload(self) -> None:
        """Read again what the main process has recorded."""
        self.record = self._read()

    def clear(self) -> None:
        """Remove what runs write here, and nothing else, but for a record that says of no stage that it is done."""
        write_json(self.record_path, self._empty())
        for name in OWNED:
            if name != "run.json":
                remove(self.path(name))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory against other runs; the main process does so for all of its run.

        What killed processes have left half-written is removed first, and what another run has recorded of its stages
        since this one read the record is taken over.

        Raises
        ------
        OutputError : when another process holds it.
        """
        if not self.processes.main:
            yield
            return
        with self.path(".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"another process is writing to {self.folder}; wait for it, or choose another --out"
                ) from error
            except OSError as error:
                raise OutputError(
                    f"cannot lock {self.folder} against other processes ({error.strerror}): its file system has no "
                    "locks; choose an --out on another one"
                ) from error
            remove_leftovers(self.folder)
            if not self.fresh:
                self.record |= {name: value for name, value in self._read().items() if name in ("stages", "model")}
            yield

    # ---------------------------------------------------------------------------------------- stages

    def is_done(self, stage: str, key: str) -> bool:
        """Return whether the stage was finished under this very key."""
        entry = self.record["stages"].get(stage, {})
        return entry.get("state") == "done" and entry.get("key") == key

    def built_on(self, *stages: str) -> dict[str, Any]:
        """Return what the results of an application stand on, to be recorded with its stage; see `foundation`."""
        return {"built_on": foundation(self.record, stages)}

    @contextmanager
    def stage(self, name: str, key: str) -> Iterator[dict[str, Any]]:
        """Record a stage: state, key, seconds (added up over resumed runs), counts, peak memory.

        The yielded mapping is the stage's entry; the body adds its counts to it.
        """
        previous = self.record["stages"].get(name, {})
        same = previous.get("key") == key
        entry: dict[str, Any] = {
            "state": "running",
            "key": key,
            "seconds": previous.get("seconds", 0.0) if same else 0.0,
        }
        if same and "unet_evaluations" in previous:
            entry["unet_evaluations"] = previous["unet_evaluations"]
        self.record["stages"].pop(name, None)  # stages stand in the order in which they were begun last
        self.record["stages"][name] = entry
        self.save()
        before, started = entry["seconds"], time.monotonic()
        try:
            yield entry
            entry["state"] = "done"
        except BaseException:
            entry["state"] = "interrupted"
            raise
        finally:
            entry["seconds"] = round(before + time.monotonic() - started, 2)
            entry["peak_memory_mb"] = peak_memory_mb()
            self.save()
