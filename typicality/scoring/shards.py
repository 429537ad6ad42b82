"""Shards of score maps on disk: a safetensors file of arrays and a Parquet index beside it.

A shard holds maps of one shape. Its index is written last: a shard without an index does not exist, so a
half-written one is never read. Shards of one pass lie in one folder named by the pass's key; images added
later become further shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from typicality.errors import OutputError
from typicality.records import ModelView, ScoreMap
from typicality.scoring.estimator import Moments
from typicality.store import write_arrays, write_table

ARRAYS = ("typicality", "shrinkage", "null_loss", "even", "even_share")
VIEW_COLUMNS = ("view_width", "view_height", "scale_x", "scale_y", "left", "top")
INDEX_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.string()),
        ("row", pa.int32()),
        ("n_pairs", pa.int32()),
        ("draws", pa.int32()),
        ("mean", pa.float32()),
        ("standard_error", pa.float32()),
        ("view_width", pa.int32()),
        ("view_height", pa.int32()),
        ("scale_x", pa.float64()),
        ("scale_y", pa.float64()),
        ("left", pa.float64()),
        ("top", pa.float64()),
    ]
)


@dataclass(frozen=True)
class ScoredRow:
    """Moments of one image and label. `mean` is over the whole map."""

    image_id: str
    label: str
    view: ModelView
    draws: int
    mean: float
    standard_error: float
    moments: Moments


@dataclass(frozen=True)
class ScoredRows:
    """The same of many images and labels of one shape on their way to a shard.

    Attributes
    ----------
    keys : image id and label
    moments : their arrays have one leading axis, over the keys
    """

    keys: tuple[tuple[str, str], ...]
    views: tuple[ModelView, ...]
    draws: int
    means: list[float]
    standard_errors: list[float]
    moments: Moments

    def rows(self) -> list[ScoredRow]:
        return [
            ScoredRow(
                image_id, label, self.views[i], self.draws, self.means[i], self.standard_errors[i],
                self.moments.each(itemgetter(i)),
            )
            for i, (image_id, label) in enumerate(self.keys)
        ]  # fmt: skip


def write_shard(folder: Path, parts: Sequence[ScoredRows]) -> None:
    """Write one shard. Its name is a hash of what it holds, so writing it again replaces it."""
    keys = [key for part in parts for key in part.keys]
    name = hashlib.sha256("".join(f"{image_id}{label}" for image_id, label in keys).encode()).hexdigest()[:16]
    moments = [part.moments for part in parts]

    def joined(arrays: Iterable[Tensor]) -> np.ndarray:
        return torch.cat(list(arrays)).numpy()

    arrays = {field: joined(getattr(m, field) for m in moments) for field in ARRAYS}
    for side in moments[0].squares:
        arrays[f"squares_{side}"] = joined(m.squares[side] for m in moments)
    write_arrays(folder / f"{name}.safetensors", arrays)
    views = [view for part in parts for view in part.views]
    columns = {
        "image_id": [image_id for image_id, _ in keys],
        "label": [label for _, label in keys],
        "row": list(range(len(keys))),
        "n_pairs": [part.moments.n for part in parts for _ in part.keys],
        "draws": [part.draws for part in parts for _ in part.keys],
        "mean": [mean for part in parts for mean in part.means],
        "standard_error": [error for part in parts for error in part.standard_errors],
        "view_width": [view.width for view in views],
        "view_height": [view.height for view in views],
        "scale_x": [view.scale_x for view in views],
        "scale_y": [view.scale_y for view in views],
        "left": [view.left for view in views],
        "top": [view.top for view in views],
    }
    write_table(folder / f"{name}.parquet", pa.table(columns, schema=INDEX_SCHEMA))


def finished_shards(folder: Path) -> list[Path]:
    """Return the indexes of the shards of a folder, in order; one whose arrays have gone is none."""
    return sorted(path for path in folder.glob("*.parquet") if path.with_suffix(".safetensors").is_file())


def read_index(folder: Path) -> pa.Table:
    """Return the index of all finished shards, with a column `shard`, ordered by image and label."""
    tables = []
    for path in finished_shards(folder):
        table = pq.read_table(path, schema=INDEX_SCHEMA)
        tables.append(table.append_column("shard", pa.array([path.stem] * len(table))))
    if not tables:
        return INDEX_SCHEMA.append(pa.field("shard", pa.string())).empty_table()
    return pa.concat_tables(tables).sort_by([("image_id", "ascending"), ("label", "ascending")])


class ScoreReader:
    """Reads maps from the shards of one pass, by image and label or as a stream; nothing is kept but the index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self._rows = {
            (image_id, label): i
            for i, (image_id, label) in enumerate(
                zip(self.index["image_id"].to_pylist(), self.index["label"].to_pylist(), strict=True)
            )
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._rows

    def has_all(self, keys: Iterable[tuple[str, str]]) -> bool:
        """Whether there is a map of every image and label."""
        return all(key in self._rows for key in keys)

    def get(self, image_id: str, label: str) -> ScoreMap:
        """Return one map.

        Raises
        ------
        OutputError : when it is not in the folder.
        """
        row = self._rows.get((image_id, label))
        if row is None:
            raise OutputError(
                f"{self.folder} holds no scores of image {image_id} under {label!r}: files of the folder were "
                "removed or replaced; `typicality mine` makes them again"
            )
        entry = self.index.slice(row, 1).to_pylist()[0]
        with safe_open(self.folder / f"{entry['shard']}.safetensors", "np") as arrays:
            return _score_map(entry, {name: arrays.get_slice(name)[entry["row"]] for name in arrays.keys()})  # noqa: SIM118

    def __iter__(self) -> Iterator[ScoreMap]:
        """Yield all maps, shard by shard."""
        table = self.index.sort_by([("shard", "ascending"), ("row", "ascending")])
        start = 0
        for run in pc.run_end_encode(table["shard"].combine_chunks()).run_ends.to_pylist() if len(table) else []:
            entries = table.slice(start, run - start).to_pylist()
            shard, start = entries[0]["shard"], run
            with safe_open(self.folder / f"{shard}.safetensors", "np") as handle:
                arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            for entry in entries:
                yield _score_map(entry, {name: a[entry["row"]] for name, a in arrays.items()})


def _score_map(entry: dict, arrays: dict[str, np.ndarray]) -> ScoreMap:
    view = ModelView(**{n.removeprefix("view_"): entry[n] for n in VIEW_COLUMNS})
    squares = {int(n.removeprefix("squares_")): a for n, a in arrays.items() if n.startswith("squares_")}
    return ScoreMap(
        image_id=entry["image_id"], label=entry["label"], view=view, n_pairs=entry["n_pairs"],
        typicality=arrays["typicality"], squares=squares, shrinkage=arrays["shrinkage"],
        null_loss=arrays["null_loss"], even=arrays["even"], even_share=arrays["even_share"],
    )  # fmt: skip
