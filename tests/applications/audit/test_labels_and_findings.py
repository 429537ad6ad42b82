"""Label errors, pruning and calibration on simulated scores with a known truth; findings and the grammar of CI."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest

from typicality.applications.audit import auditing
from typicality.applications.audit.auditing import label_findings, label_matrix
from typicality.applications.audit.findings import (
    NO_BASELINE,
    Baseline,
    Evidence,
    Finding,
    Severity,
    against_baseline,
    in_order,
    read_baseline,
    severity_of,
    write_findings,
)
from typicality.applications.audit.gates import breaches, needs_model, not_measured, parse_conditions, unmeasured
from typicality.applications.audit.labels import (
    LabelScores,
    _rank_sum,
    _signed_rank,
    chance_p_values,
    confusable_pairs,
    fit_temperature,
    label_error_score,
    rounds_of,
    ruled_out,
    unjudged_labels,
    wrong_probability,
)
from typicality.applications.audit.probe import LEAST, out_of_fold
from typicality.errors import InputError, SettingsError
from typicality.records import LabelledImage

N, LABELS = 300, ("a", "b", "c", "d")


def simulated(effect: float, flips: float = 0.0, seed: int = 0) -> tuple[LabelScores, np.ndarray]:
    """Scores of 8 pairs a label: `effect` more for the true label, noise of sd 1 shared by labels and 0.3 of its own.

    Returns them with (n,) which given labels are wrong.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, N)
    wrong = rng.random(N) < flips
    given = np.where(wrong, (truth + rng.integers(1, 4, N)) % 4, truth)
    units = rng.normal(0, 1, (N, 1, 8)) + rng.normal(0, 0.3, (N, 4, 8)) + rng.normal(0, 0.2, (N, 4, 1))
    units[np.arange(N), truth] += effect
    ids = tuple(f"{i:032x}" for i in range(N))
    mask = np.eye(4, dtype=bool)[given]
    scores = LabelScores(ids, ids, LABELS, mask, units.astype(np.float32), (4, 4), np.ones(N, dtype=bool))
    return scores, wrong


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(score)) + 1.0
    n, m = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def test_flipped_labels_are_found_and_little_else():
    scores, wrong = simulated(effect=1.0, flips=0.1)
    errors = label_error_score(scores)
    assert auroc(errors.score, wrong) > 0.98
    assert errors.reported[wrong].mean() > 0.5
    assert wrong[errors.reported].mean() > 0.9
    assert 0.04 < errors.noise_rate < 0.25
    assert np.isfinite(errors.standard_error).all()


def test_a_probe_helps_as_far_as_it_knows_something():
    """Log probabilities that know the truth in part raise the score; noise of the same size gets no weight."""
    scores, wrong = simulated(effect=0.25, flips=0.1)
    truth_unknown = np.random.default_rng(1).normal(0, 1, (N, 4))
    right = scores.given.copy()
    right[wrong] = False
    alone = label_error_score(scores)
    useful = label_error_score(scores, np.log(np.full((N, 4), 0.25)) + 2.0 * right + 0.5 * truth_unknown)
    useless = label_error_score(scores, truth_unknown)
    assert auroc(useful.score, wrong) > auroc(alone.score, wrong) + 0.05
    assert useful.probe_weight > 0.5
    assert abs(auroc(useless.score, wrong) - auroc(alone.score, wrong)) < 0.05
    assert useless.probe_weight < 0.25
    assert alone.probe_weight == 0


def test_a_label_that_the_classifier_never_saw_is_not_called_wrong():
    """All groups of the fifth label lie in fold 0, whose classifier learned from fold 1. Losses tell little of single
    images, so that its weight is large; it has nothing to say against these nine, and they are right."""
    rng = np.random.default_rng(1)
    truth = np.repeat(np.arange(5), [100] * 4 + [9])
    n, given = len(truth), np.eye(5, dtype=bool)[truth]
    folds = np.where(truth == 4, 0, np.arange(n) % 2)
    units = rng.normal(0, 1, (n, 5, 8)) + 0.6 * given[:, :, None]
    features = rng.normal(0, 1, (n, 8)) + 2.2 * np.eye(5, 8)[truth]
    ids = tuple(map(str, range(n)))
    scores = LabelScores(ids, ids, tuple("abcde"), given, units.astype(np.float32), (4, 4), np.ones(n, dtype=bool))
    errors = label_error_score(scores, np.log(out_of_fold(features, truth, folds, ids, 5) + LEAST))
    assert errors.probe_weight > 1
    found, _, _ = label_findings(scores, errors, {i: image_of(i) for i in ids})
    assert not [f for f in found if f.kind == "label_error"]


def test_random_labels_give_no_label_errors():
    """With no effect nothing tells the labels: no image is reported and nearly every label is at chance.

    What cannot be said has no measure: of images where all labels are at chance, of pairs where all but one are.
    """
    for seed in range(6):
        scores, _ = simulated(effect=0.0, seed=seed)
        errors = label_error_score(scores)
        assert not errors.reported.any()
        images = {i: image_of(i) for i in scores.image_ids}
        findings, measures, _ = label_findings(scores, errors, images)
        assert all(f.severity != "high" for f in findings)
        assert measures["chance_labels"] == (0.75 if seed == 5 else 1)
        assert measures["label_errors"] == (0 if seed == 5 else None)
        assert measures["confusable_labels"] is None


def test_where_all_labels_are_at_chance_nothing_is_measured_of_images():
    """A share of 0 would pass `label_errors>2%`, though not one image could be judged. Of images that all carry the
    same labels, chance itself cannot be told."""
    scores, _ = simulated(effect=0.0, seed=2)
    errors, images = label_error_score(scores), {i: image_of(i) for i in scores.image_ids}
    found, measures, _ = label_findings(scores, errors, images)
    assert measures == {"label_errors": None, "chance_labels": 1.0, "confusable_labels": None}
    conditions = parse_conditions("label_errors>2%,confusable_labels>0,label_error:low,labels:high")
    assert breaches(conditions, found, measures) == []
    assert unmeasured(conditions, measures, not_measured(measures)) == [
        "The condition label_errors>2% was not checked: label_errors could not be measured.",
        "The condition confusable_labels>0 was not checked: confusable_labels could not be measured.",
        "The condition label_error:low was not checked: label_error could not be examined.",
        "The condition labels:high was checked in part: label_error, confusable_labels could not be examined.",
    ]
    alike = replace(scores, given=np.tile([True, True, False, False], (N, 1)))
    assert label_findings(alike, errors, images)[1]["chance_labels"] is None


def test_of_labels_at_chance_no_image_is_called_wrong():
    """Where no image fits its label, some misfit by more than others, and a fit of the noise may call them wrong."""
    scores, _ = simulated(effect=0.0, seed=5)
    errors = replace(label_error_score(scores), reported=np.arange(N) % 9 == 0)
    found, measures, _ = label_findings(scores, errors, {i: image_of(i) for i in scores.image_ids})
    chance = {label for f in found if f.kind == "chance_labels" for label in f.labels}
    wrong = {label for f in found if f.kind == "label_error" for label in f.labels}
    assert len(chance) == 3
    assert wrong == set(LABELS) - chance
    told = [k for k, label in enumerate(LABELS) if label not in chance]
    assert measures["label_errors"] == pytest.approx((errors.reported & scores.given[:, told].any(1)).sum() / N)


def test_chance_p_values_are_uniform_under_the_null_and_small_under_an_effect():
    null = np.concatenate([chance_p_values(simulated(0.0, seed=seed)[0]) for seed in range(30)])
    assert 0.01 <= (null <= 0.1).mean() <= 0.2
    assert chance_p_values(simulated(1.0)[0]).max() < 1e-10


def of_subjects(effect: float, paired: np.ndarray, seed: int) -> LabelScores:
    """Scores of two images each of subjects that resemble one another; paired (n,): one of them carries a, else both.

    `effect` is how much higher images of a score under a; the spread between subjects is twice that between images.
    """
    rng = np.random.default_rng(seed)
    n = len(paired)
    carries = np.stack([np.ones(n, dtype=bool), ~paired], axis=1)
    carries[~paired] = (np.arange(n) % 2 == 0)[~paired, None]
    score = 2 * rng.normal(size=(n, 1)) + rng.normal(size=(n, 2)) + effect * carries
    units = np.stack([score.ravel(), np.zeros(2 * n)], axis=1)[:, :, None].astype(np.float32)
    ids = tuple(map(str, range(2 * n)))
    groups = tuple(str(i // 2) for i in range(2 * n))
    given = np.stack([carries.ravel(), ~carries.ravel()], axis=1)
    return LabelScores(ids, groups, ("a", "b"), given, units, (1,), np.ones(2 * n, dtype=bool))


def told_apart(with_both: int, with_one: tuple[int, int] = (0, 0)) -> LabelScores:
    """Scores that tell a and b apart in every image: groups of 20 images of both, and so many with a or b alone."""
    kinds = [(0, 1)] * with_both + [(0,)] * with_one[0] + [(1,)] * with_one[1]
    rows = [
        (f"group {g}", label) for g, labels in enumerate(kinds) for label in labels for _ in range(20 // len(labels))
    ]
    given = np.eye(2, dtype=bool)[[label for _, label in rows]]
    n = len(rows)
    units = np.random.default_rng(0).normal(0, 0.1, (n, 2, 4)) + np.where(given, 1, -1)[:, :, None]
    ids = tuple(f"{i:032x}" for i in range(n))
    groups = tuple(group for group, _ in rows)
    return LabelScores(ids, groups, ("a", "b"), given, units.astype(np.float32), (2, 2), np.ones(n, dtype=bool))


@pytest.mark.parametrize(
    ("groups", "judged"),
    [((2,), False), ((4,), False), ((5,), True), ((0, (2, 3)), False), ((0, (3, 3)), True), ((2, (1, 1)), False)],
)
def test_labels_in_too_few_groups_are_not_judged(groups: tuple, judged: bool):
    """Four groups that have both labels, all in the right order, have z = (5 - 0.5) / sqrt(7.5) = 1.643, p = 0.0502.

    No scores could do better, so that a label at chance, a wrong label and a confusable pair are all unknown there.
    """
    scores = told_apart(*groups)
    assert np.isfinite(chance_p_values(scores)).tolist() == [judged, judged]
    assert unjudged_labels(scores) == ([] if judged else ["a", "b"])
    wrong = np.arange(len(scores.image_ids)) % 7 == 0
    errors = replace(label_error_score(scores), reported=wrong)
    found, measures, _ = label_findings(scores, errors, {i: image_of(i) for i in scores.image_ids})
    if judged:
        assert measures == {"label_errors": wrong.mean(), "chance_labels": 0, "confusable_labels": 0}
    else:
        assert (found, set(measures.values())) == ([], {None})
        conditions = parse_conditions("chance_labels>0,label_errors>2%")
        assert breaches(conditions, found, measures) == []
        assert len(unmeasured(conditions, measures, not_measured(measures))) == 2


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_subjects_that_carry_several_labels_are_compared_with_themselves(share: float):
    """Without an effect p-values are uniform, whatever the share of such subjects. With one of half the spread between
    images, 60 subjects that have both labels show it nearly always; compared as if unrelated they did in 16%.
    """
    paired = np.arange(60) < share * 60
    null = np.array([chance_p_values(of_subjects(0.0, paired, seed))[0] for seed in range(200)])
    assert 0.01 <= (null <= 0.05).mean() <= 0.1
    assert (null <= 0.5).mean() == pytest.approx(0.5, abs=0.1)
    found = np.mean([chance_p_values(of_subjects(0.5, paired, seed))[0] <= 0.05 for seed in range(50)])
    assert found > {1.0: 0.75, 0.5: 0.4, 0.0: 0.05}[share]


def test_ranks_by_hand():
    """Differences 1, 2, 3 and -4: 6 of 10 ranks, mean 5, variance 4 * 5 * 9 / 24; a difference of 0 adds nothing.

    3, 4 against 1, 2: both pairs of either are won, 4 of 4, mean 2, variance 2 * 2 * 5 / 12.
    """
    assert _signed_rank(np.array([1.0, 2, 3, -4, 0])) == pytest.approx(0.5 / np.sqrt(7.5))
    assert _signed_rank(np.zeros(3)) == 0
    assert _rank_sum(np.array([3.0, 4]), np.array([1.0, 2])) == pytest.approx(1.5 / np.sqrt(5 / 3))


def test_temperature_recovers_what_made_the_labels():
    """Labels drawn from softmax(scores / 2), a tenth of them random: both numbers come back."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 6, (20_000, 4))
    p = np.exp(scores / 2)
    p /= p.sum(1, keepdims=True)
    label = (p.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    label = np.where(rng.random(20_000) < 0.1, rng.integers(0, 4, 20_000), label)
    found = fit_temperature(scores, np.eye(4, dtype=bool)[label])
    temperature, noise = found.temperature, found.noise_rate
    assert temperature == pytest.approx(2, rel=0.1)
    assert noise == pytest.approx(0.1, abs=0.02)


def test_wrong_probability_by_hand():
    """Two labels, noise 0.2, even odds: 0.5 * 0.9 against 0.5 * 0.1, so wrong with probability 0.1."""
    given = np.array([[True, False]])
    assert wrong_probability(np.array([0.0]), given, 0.2)[0] == pytest.approx(0.1)
    assert wrong_probability(np.array([50.0]), given, 0.2)[0] == pytest.approx(1)


def test_hopeless_labels_leave_and_good_ones_stay():
    """A label 5 standard deviations behind goes; the given label stays however bad; noise alone removes few."""
    rng = np.random.default_rng(0)
    units = rng.normal(0, 0.3, (500, 4, 8))
    given = np.zeros((500, 4), dtype=bool)
    given[:, 0] = True
    none = ruled_out(units, given, (4, 4))
    assert none.mean() < 0.05
    units[:, 3] -= 2
    units[:, 0] -= 2
    gone = ruled_out(units, given, (4, 4))
    assert gone[:, 3].mean() > 0.95
    assert not gone[:, 0].any()
    assert not gone.all(1).any()


def test_a_label_that_left_is_compared_on_the_draws_it_had():
    """Given: 1, 1, 3, 3; the other one 0.5 less on the first two draws, then gone: its score is 2 - 0.5."""
    units = np.array([[[1.0, 1.0, 3.0, 3.0], [0.5, 0.5, np.nan, np.nan]]], dtype=np.float32)
    given = np.array([[True, False]])
    scores = LabelScores(("x",), ("x",), ("a", "b"), given, units, (2, 2), np.ones(1, dtype=bool))
    assert scores.mean.tolist() == [[2.0, 1.5]]
    assert scores.draws.tolist() == [[8, 4]]
    assert scores.table().num_rows == 2


def test_confusable_labels():
    """a and b have nearly the same score wherever one of them is true; c and d are told apart."""
    scores, _ = simulated(effect=1.0)
    units = scores.units.copy()
    units[:, 1] = units[:, 0] + np.random.default_rng(1).normal(0, 0.3, units[:, 0].shape)
    pairs = confusable_pairs(LabelScores(**{**vars(scores), "units": units}))
    assert pairs[0].labels == ("a", "b")
    assert pairs[0].confusion > 0.35
    assert pairs[-1].confusion < 0.1


def test_the_label_matrix_has_shares():
    matrix = label_matrix(simulated(effect=1.0)[0])["confusion"]
    assert [sum(row) for row in matrix] == pytest.approx([1] * 4, abs=1e-3)
    assert min(matrix[k][k] for k in range(4)) > 0.9


def test_several_labels_an_image_are_all_given():
    """An image that carries the best and the worst label is not wrong."""
    scores, _ = simulated(effect=1.0)
    given = scores.given.copy()
    given[np.arange(N), (scores.given.argmax(1) + 1) % 4] = True
    errors = label_error_score(LabelScores(**{**vars(scores), "given": given}))
    assert not errors.reported.any()


def test_rounds_double():
    assert rounds_of(4) == (4,)
    assert rounds_of(16) == (4, 4, 8)
    assert rounds_of(20) == (4, 4, 8, 4)
    with pytest.raises(InputError, match="even"):
        rounds_of(7)


# ------------------------------------------------------------------------------------- findings and conditions


def image_of(image_id: str) -> LabelledImage:
    return LabelledImage(image_id, f"{image_id}.png", ("a",), image_id, 10, 10, None)


def finding(kind: str = "same_place", severity: Severity = "high", score: float = 1.0, identity: str = "x") -> Finding:
    shown = (Evidence("i", "i.png", "a", (0, 0, 4, 4)),)
    return Finding(kind, severity, f"{kind} {identity}", "…", ("a",), score, None, 0.001, shown, {}, identity)


def test_findings_are_sorted_by_severity_then_score():
    order = in_order(
        [finding(severity="low", identity="1"), finding(score=0.6, identity="2"), finding(score=0.9, identity="3")]
    )
    assert [f.identity for f in order] == ["3", "2", "1"]


def test_ids_do_not_depend_on_scores():
    assert finding(score=0.2, severity="low").id == finding(score=0.9).id
    assert finding(identity="y").id != finding().id


def thing(score: float, concerns: Iterable[object], basis: Literal["images", "element"] = "images") -> Finding:
    return replace(finding(score=score), basis=basis, concerns=tuple(map(str, concerns)))


def test_two_things_of_one_name_are_two_findings():
    """They get ids of their own, by their images and not by rank; sorting again changes nothing.

    Two elements of the same images are told apart, too.
    """
    both = in_order([thing(0.5, "ab"), thing(1.0, "cd"), finding(identity="y"), thing(0.2, "ba")])
    assert [f.score for f in both if f.identity == "x"] == [1.0, 0.5, 0.2]
    assert len({f.id for f in both}) == 4
    assert [f.id for f in in_order(both)] == [f.id for f in both]
    other_way = in_order([thing(0.5, "cd"), thing(1.0, "ab")])
    assert other_way[0].concerns == ("a", "b")
    assert {f.concerns: f.id for f in other_way} == {
        f.concerns: f.id for f in both if f.identity == "x" and f.score > 0.2
    }


def written(folder: Path, findings: Iterable[Finding]) -> Baseline:
    """The baseline that these findings are."""
    write_findings(folder, {"findings": [f.as_dict() for f in findings]})
    return read_baseline(folder / "findings.json")


@pytest.mark.parametrize("basis", ["images", "element"])
def test_a_thing_is_known_by_its_images(basis: Literal["images", "element"], tmp_path):
    """Two things of one name, the graver first. Without the first the second is known; with other scores both are.

    Another thing of that name is new, though the baseline has two of it.
    """
    first, second, third = (range(start, start + 30) for start in (0, 100, 200))
    before = in_order([thing(0.9, first, basis), thing(0.8, second, basis)])
    known = written(tmp_path, before)
    for scores, images in (((0.8,), (second,)), ((0.7, 0.9), (first, second)), ((0.9, 0.8), (third, second))):
        now = against_baseline(in_order(thing(s, i, basis) for s, i in zip(scores, images, strict=True)), known)
        for found in now:
            same = [f for f in before if f.concerns == found.concerns]
            assert found.new is not bool(same)
            assert not same or found.id == same[0].id
    assert len({f.id for f in [*before, *now]}) == 3


def test_a_thing_keeps_its_id_while_its_images_change(tmp_path):
    """Of 20 images 16 are the same and 4 new: known, and still under the first id in the baseline after that.

    Where 9 of 20 are the same it is another thing. The best match is taken: of two things that share images with one in
    the baseline, that with more. An element may have up to half of other members.
    """
    known = written(tmp_path, before := [thing(0.9, range(20))])
    for step in (1, 2, 3):
        (now,) = against_baseline([thing(0.5, range(4 * step, 4 * step + 20))], known)
        assert (now.new, now.id) == (False, before[0].id)
        known = written(tmp_path, [now])
    known = written(tmp_path, before)
    (now,) = against_baseline([thing(0.9, range(11, 31))], known)
    assert (now.new, now.id == before[0].id) == (True, False)
    less, more = against_baseline([thing(0.9, range(8, 20)), thing(0.5, range(20))], known)
    assert (less.id == before[0].id, more.id) == (False, before[0].id)
    assert [against_baseline([thing(0.9, range(9, 29), basis)], known)[0].new for basis in ("images", "element")] == [
        True,
        False,
    ]


def test_severity_needs_effect_and_significance():
    assert severity_of("same_place", 0.9, 1e-6) == "high"
    assert severity_of("same_place", 0.9, 0.005) == "medium"
    assert severity_of("same_place", 0.9, 0.04) == "low"
    assert severity_of("same_place", 0.1, 1e-9) == "low"
    assert severity_of("borders", 0.9, 1e-9) == "medium"


def test_a_baseline_hides_what_is_known(tmp_path):
    write_findings(tmp_path, {"findings": [finding().as_dict()]})
    known = read_baseline(tmp_path / "findings.json")
    marked = against_baseline([finding(), finding(identity="new")], known)
    assert [f.new for f in marked] == [False, True]
    assert breaches(parse_conditions("shortcut:high"), marked[:1], {}) == []
    assert len(breaches(parse_conditions("shortcut:high"), marked, {})) == 1
    assert json.loads((tmp_path / "findings.json").read_text())["findings"][0]["evidence"][0]["box"] == [0, 0, 4, 4]
    assert pq.read_table(tmp_path / "findings.parquet")["new"].to_pylist() == [True]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match=r"no findings\.json"):
        read_baseline(tmp_path / "other.json")


def test_what_grew_is_new(tmp_path):
    """Graver, one more image with a wrong label, a third more images with a mark; a fifth more is the threshold's."""

    def concerning(kind: str, n: int, severity: Severity = "low") -> Finding:
        return replace(finding(kind, severity), concerns=tuple(map(str, range(n))))

    earlier = [concerning("label_error", 8), concerning("same_place", 8), concerning("near_duplicates", 8)]
    write_findings(tmp_path, {"findings": [f.as_dict() for f in earlier]})
    known = read_baseline(tmp_path / "findings.json")
    now = [
        (concerning("label_error", 8), False), (concerning("label_error", 6), False),
        (concerning("label_error", 9), True), (concerning("near_duplicates", 9), True),
        (concerning("same_place", 10), False), (concerning("same_place", 12), True),
        (concerning("label_error", 8, "medium"), True), (concerning("borders", 0), True),
    ]  # fmt: skip
    assert [f.new for f in against_baseline([f for f, _ in now], known)] == [new for _, new in now]


def baseline_of(findings, pairs=()) -> Baseline:
    return Baseline(
        {f.id: f.severity for f in findings}, {f.id: frozenset(f.concerns) for f in findings},
        confusable=frozenset(frozenset(pair.labels) for pair in pairs),
    )  # fmt: skip


def test_measures_of_labels_are_of_what_is_new():
    """Against its own findings every measure is 0; without half of the suspects in the baseline it is the other half.

    Those that are new are shown first. d is at chance, and the pair a, b cannot be told apart.
    """
    scores, _ = simulated(effect=1.0, flips=0.1)
    units = scores.units.copy()
    units[:, 3] = np.random.default_rng(2).normal(-1, 0.5, units[:, 3].shape)
    units[:, 1] = units[:, 0] + np.random.default_rng(1).normal(0, 0.3, units[:, 0].shape)
    scores = replace(scores, units=units)
    errors, images = label_error_score(scores), {i: image_of(i) for i in scores.image_ids}
    found, measures, pairs = label_findings(scores, errors, images)
    assert min(measures.values()) > 0
    assert not any(f.new for f in against_baseline(found, baseline_of(found, pairs)))
    assert set(label_findings(scores, errors, images, baseline_of(found, pairs))[1].values()) == {0}

    wrong = next(f for f in found if f.kind == "label_error")
    kept = wrong.concerns[: len(wrong.concerns) // 2]
    part = baseline_of([replace(f, concerns=kept if f is wrong else f.concerns) for f in found], pairs)
    again, fewer, _ = label_findings(scores, errors, images, part)
    assert fewer["label_errors"] == pytest.approx((len(wrong.concerns) - len(kept)) / N)
    new = [f for f in against_baseline(again, part) if f.new]
    assert [f.id for f in new] == [wrong.id]
    assert new[0].evidence[0].image_id not in kept


def test_labels_are_judged_by_images_that_the_model_had_not_seen(tmp_path, monkeypatch):
    """The model saw the first 200 images and knows their labels by heart, wrong ones too; of the other 100 it says it.

    Shares, matrix and suspects are those of the 100 alone; labels.parquet has all.
    """
    scores, _ = simulated(effect=1.0, flips=0.1)
    units, seen = scores.units.copy(), np.arange(N) < 200
    units[seen] = -5 + 10 * scores.given[seen][:, :, None]
    scores = replace(scores, units=units, held_out=~seen)
    monkeypatch.setattr(auditing, "label_scores", lambda run, draws, progress: scores)
    monkeypatch.setattr(auditing, "label_probe", lambda run, image_ids: None)
    dataset = type("Images", (list,), {"labels": LABELS})([image_of(i) for i in scores.image_ids])
    run = SimpleNamespace(dataset=dataset, directory=SimpleNamespace(path=lambda name: tmp_path / name))

    parts = auditing._Parts([], {}, [])
    auditing._add_labels(parts, run, 16, NO_BASELINE, auditing.SILENT)
    suspects = {i for f in parts.findings if f.kind == "label_error" for i in f.concerns}
    assert suspects
    assert suspects <= set(scores.image_ids[200:])
    assert parts.measures["label_errors"] == pytest.approx(len(suspects) / 100)
    assert parts.matrix == label_matrix(scores.part(~seen))
    assert "100 of 300 images" in parts.notes[0]
    assert pq.read_table(tmp_path / "labels.parquet").num_rows == N

    monkeypatch.setattr(auditing, "label_scores", lambda *a, **k: replace(scores, held_out=np.zeros(N, dtype=bool)))
    nothing = auditing._Parts([], {}, [])
    auditing._add_labels(nothing, run, 16, NO_BASELINE, auditing.SILENT)
    assert (nothing.findings, nothing.measures, nothing.matrix) == ([], {}, None)


def test_of_a_label_in_one_group_nothing_is_said_but_that(tmp_path, monkeypatch):
    """All images of d are of one group, and the others of 20: the highest z is sqrt(3) * 19 / sqrt(20 * 22) = 1.57."""
    scores, _ = simulated(effect=1.0)
    groups = tuple("one" if row[3] else str(i % 20) for i, row in enumerate(scores.given))
    scores = replace(scores, groups=groups)
    assert unjudged_labels(scores) == ["d"]
    errors = replace(label_error_score(scores), reported=np.arange(N) % 9 == 0)
    monkeypatch.setattr(auditing, "label_scores", lambda run, draws, progress: scores)
    monkeypatch.setattr(auditing, "label_probe", lambda run, image_ids: None)
    monkeypatch.setattr(auditing, "label_error_score", lambda scores, probe: errors)
    dataset = type("Images", (list,), {"labels": LABELS})([image_of(i) for i in scores.image_ids])
    run = SimpleNamespace(dataset=dataset, directory=SimpleNamespace(path=lambda name: tmp_path / name))
    parts = auditing._Parts([], {}, [])
    auditing._add_labels(parts, run, 16, NO_BASELINE, auditing.SILENT)
    assert {label for f in parts.findings for label in f.labels} == {"a", "b", "c"}
    assert parts.measures["chance_labels"] == 0
    assert parts.notes[0].startswith("Too few groups carry 'd', or do not, to tell whether the model knows")
    assert unmeasured(parse_conditions("label_errors>2%,labels:high"), parts.measures, (), parts.in_part) == [
        "The condition label_errors>2% was checked in part: label_error could not be examined for every label.",
        "The condition labels:high was checked in part: label_error, confusable_labels, chance_labels could not be "
        "examined for every label.",
    ]


@pytest.mark.parametrize(
    ("text", "breached"),
    [
        ("label_errors>2%", True),
        ("label_errors>3%", False),
        ("label_errors>=3%", True),
        ("label_errors>0.02", True),
        ("label-errors > 2 %, findings>5", True),
        ("shortcut:high", False),
        ("shortcut:medium", True),
        ("same_place:low", True),
        ("duplicates:low", False),
        ("any:medium", True),
        ("label_errors>=100%", False),
        ("findings>=1", True),
        ("giveaway>10%", False),
        ("chance_labels>=0", False),
    ],
)
def test_conditions(text: str, breached: bool):
    """3% of the labels are wrong, there is one shortcut of medium severity, and no giveaway could be looked for."""
    measures = {"label_errors": 0.03, "findings": 1.0, "giveaway": None}
    assert bool(breaches(parse_conditions(text), [finding(severity="medium")], measures)) is breached


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("label_error>2%", "did you mean 'label_errors'"),
        ("shortcuts:high", "did you mean 'shortcut'"),
        ("shortcut:grave", "high, medium, low"),
        ("nonsense", "measures: label_errors"),
        ("", "cannot be read"),
        ("label_errors>1.2.3", "not a number"),
        ("label_errors>2", "so write label_errors>2%$"),
        ("giveaway>1", "so write giveaway>1%$"),
        ("near-duplicates>200%", "at most 1, or 100%$"),
        ("label_errors>150", "at most 1, or 100%$"),
        ("high>50%", "number of findings of high severity, so write high>50$"),
    ],
)
def test_bad_conditions_say_what_is_possible(text: str, match: str):
    with pytest.raises(SettingsError, match=match):
        parse_conditions(text)


def test_a_measure_that_was_not_taken_is_a_note():
    conditions = parse_conditions("label_errors>1%,giveaway>10%,high>2,shortcut:high")
    assert unmeasured(conditions, {"label_errors": 0.5, "giveaway": None, "high": 0.0}) == [
        "The condition giveaway>10% was not checked: giveaway could not be measured."
    ]


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("labels:high", True),
        ("label_error:low", True),
        ("chance_labels:low", True),
        ("repeated_object:low", True),
        ("borders:low", True),
        ("outside_truth:low", True),
        ("label_errors>2%", True),
        ("same_place:low", False),
        ("shortcut:high", False),
        ("any:low", False),
        ("giveaway>10%", False),
        ("findings>3", False),
    ],
)
def test_conditions_that_only_the_model_can_tell(text: str, needed: bool):
    assert [needs_model(condition) for condition in parse_conditions(text)] == [needed]


def test_a_kind_that_was_not_looked_for_is_a_note():
    """Where no boxes or masks are given, only a condition on them says so: a family of shortcuts is not about them."""
    conditions = parse_conditions("shortcut:high,outside_truth:low,duplicates:low")
    assert unmeasured(conditions, {}, {"outside_truth"}) == [
        "The condition outside_truth:low was not checked: outside_truth could not be examined."
    ]
    assert unmeasured(conditions[:1], {}, {"outside_truth", "borders"}) == [
        "The condition shortcut:high was checked in part: borders, outside_truth could not be examined."
    ]


def test_numbers_of_findings_rest_on_all_kinds():
    """None of high severity says little where shortcuts could not be looked for; places are rarely given at all."""
    conditions = parse_conditions("high>0,chance_labels>0")
    measures = {"high": 0.0, "chance_labels": 0.0}
    assert unmeasured(conditions, measures, {"same_place", "outside_truth"}) == [
        "The condition high>0 was checked in part: same_place, outside_truth could not be examined."
    ]
    assert unmeasured(conditions, measures, {"outside_truth"}) == []


def test_the_error_of_a_share_counts_groups():
    """All 40 images of a in 4 groups of 10, one of which is wrong: sqrt(4 / 3 * (0.75^2 + 3 * 0.25^2)) / 4 = 0.25.

    Four more groups, of b, are there to tell a from.
    """
    group = np.repeat(np.arange(8), 10)
    units = np.where((group[:, None] == 0) | (group[:, None] > 3), [-5.0, 5.0], [5.0, -5.0])[:, :, None] + np.zeros(4)
    scores = LabelScores(
        tuple(map(str, range(80))), tuple(map(str, group)), ("a", "b"), np.eye(2, dtype=bool)[(group > 3).astype(int)],
        units.astype(np.float32), (2, 2), np.ones(80, dtype=bool),
    )  # fmt: skip
    errors = replace(label_error_score(scores), reported=group == 0)
    (found, *_), _, _ = label_findings(scores, errors, {i: image_of(i) for i in scores.image_ids})
    assert (found.kind, found.score) == ("label_error", 0.25)
    assert found.standard_error == pytest.approx(0.25)
