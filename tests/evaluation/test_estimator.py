"""`evaluate estimator` on images whose typicality is known, and on a tiny run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import typicality
from tests.scoring.synthetic import World
from typicality.errors import InputError, OutputError
from typicality.evaluation.estimator import (
    Cost,
    Drawn,
    EstimatorQuality,
    compare,
    draw_figure,
    estimator,
    overlap,
    sample,
    spread_by_timestep,
    union_share,
)
from typicality.mining.patches import PatchSelection
from typicality.model.calibration import saving
from typicality.records import Patch
from typicality.scoring.noise import DrawPlan
from typicality.scoring.scorer import Job

pytestmark = pytest.mark.slow


def patch(image_id: str = "i", row: int = 0, column: int = 0) -> Patch:
    return Patch(image_id, "a", row, column, 4, (0, 0, 1, 1), 1.0, 0.1)


def test_overlap_by_hand() -> None:
    """Shifted by one of 4 cells: 12 / 20 = 0.6, a match; by two: 8 / 24, none. A patch matches once only."""
    assert union_share(patch(), patch(row=1)) == pytest.approx(0.6)
    assert union_share(patch(), patch(row=1, column=1)) == pytest.approx(9 / 23)
    assert overlap({"a": [patch()]}, {"a": [patch(row=1)]}) == 1
    assert overlap({"a": [patch()]}, {"a": [patch(row=2)]}) == 0
    assert overlap({"a": [patch()]}, {"a": [patch("j")]}) == 0
    assert overlap({"a": [patch(), patch(row=1)]}, {"a": [patch()]}) == 0.5


def test_the_sample_takes_labels_alike_whatever_the_order() -> None:
    labels_of = {f"{i:02d}": ("b",) if i % 5 else ("a",) for i in range(40)}
    chosen = sample(labels_of, 12)
    assert [len([j for j in chosen if j.labels == (label,)]) for label in "ab"] == [6, 6]
    assert chosen == sample(dict(reversed(labels_of.items())), 12)


@pytest.fixture(scope="module")
def measured() -> EstimatorQuality:
    world = World(images=30, seed=3)

    def draw(purpose: str, plan: DrawPlan, jobs: Sequence[Job], prefixes: Sequence[int]) -> list[Drawn]:
        """An independent draw has 1.8 times the deviation of an antithetic pair."""
        noise, world.noise = world.noise, world.noise * (1 if plan.antithetic else 1.8)
        maps = [Drawn(world.maps(jobs, purpose, n, plan.stratified).rows) for n in prefixes]
        world.noise = noise
        return maps

    selection = PatchSelection(4, 4, per_image=5, per_label=10**6, share=0.09)
    unit = DrawPlan(1, 0.1, 0.7), DrawPlan(1, 0.1, 0.7, antithetic=False, stratified=False)
    return compare(draw, world.jobs(), selection, lambda _: (64, 64), unit, 400, [4, 100])


def test_ours_are_drawn_as_mining_draws_and_the_rest_uniformly() -> None:
    """What the density saves is told from the spread of uniform draws."""
    world, asked = World(images=30, seed=3), {"uniform": set(), "tilted": set()}

    def drawing(kind: str) -> Any:
        def draw(purpose: str, plan: DrawPlan, jobs: Sequence[Job], prefixes: Sequence[int]) -> list[Drawn]:
            asked[kind].add(purpose.split()[0])
            return [Drawn(world.maps(jobs, purpose, n, plan.stratified).rows) for n in prefixes]

        return draw

    selection = PatchSelection(4, 4, per_image=5, per_label=10**6, share=0.09)
    unit = DrawPlan(1, 0.1, 0.7), DrawPlan(1, 0.1, 0.7, antithetic=False, stratified=False)
    result = compare(
        drawing("uniform"), world.jobs(), selection, lambda _: (64, 64), unit, 100, [4],
        as_mining=drawing("tilted"), tilt=0.5,
    )  # fmt: skip
    assert asked["uniform"] == {"gold", "published", "spread"}
    assert asked["tilted"] == {"first", "uniform", "further", "refinement"}
    assert result.tilt == 0.5
    assert result.tilt_saving == round(saving(np.array(result.spread), 0.5), 4)


def test_cost_is_counted_in_evaluations_with_the_null_prompt(measured: EstimatorQuality) -> None:
    """Two evaluations a draw with one label an image; adaptive: between its first pass and its budget."""
    rows = {row.name: row for row in measured.rows}
    assert rows["published, N = 100"].evaluations == 200
    assert rows["uniform, 8 draws"].evaluations == 16
    assert 8 < rows["adaptive, fast"].evaluations < rows["adaptive, standard"].evaluations
    assert rows["adaptive, standard"].evaluations <= 2 * (4 + 5 + 16)
    assert measured.evaluations_ratio == pytest.approx(rows["adaptive, standard"].evaluations / 200, abs=1e-3)
    assert measured.k == {"a": 13, "b": 13}


def test_what_both_prompts_share_counts_once() -> None:
    jobs = [Job("i", ("a",)), Job("j", ("a", "b"))]
    cost = Cost(jobs, 0.8)
    assert cost.predictions(10, jobs) == pytest.approx(10 * (2 + 3) / 2)
    assert cost.evaluations(10, jobs) == pytest.approx(10 * (0.8 + 2 * 0.2 + 0.8 + 3 * 0.2) / 2)
    assert cost.evaluations(10, jobs[:1]) == pytest.approx(10 * 1.2 / 2)
    assert Cost(jobs, 0.0).evaluations(10, jobs) == cost.predictions(10, jobs)


def test_more_draws_are_better_and_intervals_hold(measured: EstimatorQuality) -> None:
    rows = {row.name: row for row in measured.rows}
    assert rows["published, N = 100"].rank_correlation > rows["published, N = 4"].rank_correlation + 0.1
    assert rows["uniform, 32 draws"].overlap > rows["uniform, 4 draws"].overlap
    assert rows["adaptive, exact"].overlap > rows["uniform, 4 draws"].overlap
    assert (rows["uniform, 4 draws"].value or 0) + 0.02 < (rows["uniform, 32 draws"].value or 0)
    assert all(row.overlap - 0.02 <= (row.value or 0) <= 1 for row in measured.rows)
    assert 0.83 < measured.coverage_90 < 0.97
    assert 0.8 < measured.coverage_90_selected <= 1


def test_the_result_is_json_and_a_picture(measured: EstimatorQuality, tmp_path: Path) -> None:
    document = json.loads(json.dumps(measured.as_dict()))
    assert {"evaluations_ratio", "overlap", "overlap_paper", "coverage_90", "coverage_90_selected"} <= set(document)
    draw_figure(measured, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_spread_of_a_bin_of_timesteps_is_found() -> None:
    """Every image has its own level, which is no spread; the deviation of a unit is 1 to 8 over the eight bins."""
    world, rng = World(images=30, seed=3), np.random.default_rng(0)
    level = {job.image_id: 100 * rng.standard_normal() for job in world.jobs()}

    def draw(purpose: str, plan: DrawPlan, jobs: Sequence[Job], prefixes: Sequence[int]) -> list[Drawn]:
        one = world.maps(jobs, purpose, 1, True).rows
        units = {key: level[key[0]] + rng.standard_normal((8, 16, 16)) * np.arange(1, 9)[:, None, None] for key in one}
        return [
            Drawn({key: replace(one[key], typicality=units[key][:n].mean(0)) for key in one}) for n in prefixes
        ]  # fmt: skip

    found = spread_by_timestep(draw, DrawPlan(1, 0.1, 0.7), world.jobs(), side=1)
    np.testing.assert_allclose(found, np.arange(1, 9), rtol=0.05)


def test_a_tiny_run(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The whole of it with a model: every evaluation is drawn, and the run's results are left as they were."""
    options = {"score": {"draws": 2, "refine_draws": 2}, "mine": {"noises": 1}, "finetune": {"enabled": False}}
    typicality.mine(tiny_folder, "folder", model=str(tiny_model), out=tmp_path / "run", dtype="fp32", **options)
    before = files_of(tmp_path / "run")
    found = estimator(tmp_path / "run", images=6, gold=100, paper=(2, 4))
    assert found.sample == 6
    assert found.gold_draws == 100
    assert [row.evaluations for row in found.rows[:2]] == [4, 8]
    after = files_of(tmp_path / "run")
    assert {path: after[path] for path in before} == before
    added = set(after) - set(before)
    assert [path.name for path in sorted(added)] == ["0.safetensors", "1.safetensors"]
    with pytest.raises(InputError, match="--gold"):
        estimator(tmp_path / "run", gold=10)
    with pytest.raises(OutputError, match="no run directory"):
        estimator(tmp_path / "nothing")


def files_of(folder: Path) -> dict[Path, bytes]:
    """The contents of all files but the record."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.json"}


def test_the_gold_standard_is_drawn_once(tmp_path: Path) -> None:
    """A call that was stopped after one block draws the others; the next draws none. The result is always the same."""
    world, purposes = World(images=12, seed=3), list[str]()

    def draw(purpose: str, plan: DrawPlan, jobs: Sequence[Job], prefixes: Sequence[int]) -> list[Drawn]:
        purposes.append(purpose)
        return [Drawn(world.maps(jobs, purpose, n, plan.stratified).rows) for n in prefixes]

    def measured(keep: Path | None) -> tuple[list[dict], list[str]]:
        purposes.clear()
        selection = PatchSelection(4, 4, per_image=5, per_label=10**6, share=0.09)
        unit = DrawPlan(1, 0.1, 0.7), DrawPlan(1, 0.1, 0.7, antithetic=False, stratified=False)
        result = compare(draw, world.jobs(), selection, lambda _: (64, 64), unit, 150, [4], keep=keep)
        return result.as_dict()["rows"], [p for p in purposes if p.startswith("gold")]

    rows, drawn = measured(None)
    assert drawn == ["gold 0", "gold 1", "gold 2"]
    assert measured(tmp_path) == (rows, drawn)
    (tmp_path / "1.safetensors").unlink()
    assert measured(tmp_path) == (rows, ["gold 1"])
    assert measured(tmp_path) == (rows, [])
