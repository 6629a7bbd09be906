"""Claims about the words that stand for numbers."""

import pytest

from cellbridge.metrics import channels
from cellbridge.metrics.table import text_table
from cellbridge.metrics.verdict import judge


def _estimate(value, half=0.05):
    return {"value": value, "low": value - half, "high": value + half}


def _rows(*, hits, errors=None, n=100):
    """Rows of one model and its null rows, from the share of hits and the error of each."""
    keys = {"model:m": "model", "copy": "null", "shift": "null", "denoised": "null", "shuffled:model:m": "null"}
    rows = []
    for key, kind in keys.items():
        row = {"key": key, "name": key, "kind": kind, "n": n, "n_distance": 30, "target_hit": _estimate(hits[key])}
        row["hit_against"] = {other: _estimate(hits[key] - hits[other], 0.08) for other in keys if other != key}
        row["control_against"] = {"copy": _estimate(0.0)}
        row["hit_relative"] = _estimate(hits[key] / 0.8, 0.06)
        row["gap_closed"] = _estimate(0.6, 0.2)
        if errors:
            row |= {"error": _estimate(errors[key]), "score": _estimate(errors[key])}
            row["against"] = {other: _estimate(errors[key] - errors[other], 0.02) for other in keys if other != key}
        rows.append(row)
    return [*rows, {"key": "real", "name": "real", "kind": "real", "n": n, "target_hit": _estimate(0.8)}]


def _hits(model, *, copy=0.0, shift=0.1, denoised=0.0, shuffled=0.0):
    return {"model:m": model, "copy": copy, "shift": shift, "denoised": denoised, "shuffled:model:m": shuffled}


def _used(hits):
    """What `condition_use.shuffled_gap` finds where the outputs for another target are hit as often as here."""
    gap = _estimate(hits["model:m"] - hits["shuffled:model:m"], 0.08)
    return {"shuffled": {"hits": gap, "log_odds": gap, "plates": []}}


def _errors(model):
    return {"model:m": model, "copy": 0.5, "shift": 0.4, "denoised": 0.48, "shuffled:model:m": 0.7}


@pytest.mark.parametrize(
    ("hits", "errors", "label"),
    [
        (_hits(0.8), _errors(0.3), "carries the phenotype, cell by cell"),
        (_hits(0.8), None, "carries the phenotype; whether of this very cell is not known"),
        (
            _hits(0.24),
            _errors(0.3),
            "carries a part of the phenotype (30\u00a0% of real cells' hit rate), closer to each cell's truth than copies and shifts",
        ),
        (_hits(0.05), _errors(0.5), "indistinguishable from DMSO"),
        (_hits(0.5, shift=0.5), _errors(0.4), "explained by an intensity shift"),
        (_hits(0.5, denoised=0.5), _errors(0.5), "explained by smoothing"),
        (_hits(0.8, shuffled=0.8), _errors(0.3), "does not depend on its condition"),
        (_hits(0.8), _errors(0.9), "shows the phenotype, but not of this cell"),
        (_hits(0.8), _errors(0.4), "shows the phenotype; no nearer to the truth than a null row"),
    ],
)
def test_each_outcome_has_its_label(hits, errors, label):
    words = {"target": "taxol@1", "control": "DMSO", "separable": None, "evidence": _used(hits)}
    verdict = judge(_rows(hits=hits, errors=errors), "model:m", **words)
    assert verdict.label == label
    assert verdict.held_up is (None if "a part of" in label else label.startswith("carries"))
    assert verdict.in_part is ("a part of" in label)


@pytest.mark.parametrize("error", [0.3, 0.36])
def test_what_is_no_nearer_than_a_random_cell_of_the_target_is_not_called_cell_by_cell(error):
    rows = _rows(hits=_hits(0.8), errors=_errors(error))
    rows[0]["against"]["random_target"] = _estimate(error - 0.35, 0.02)
    rows.append({"key": "random_target", "name": "random taxol@1 cell of the plate", "kind": "null", "n": 100})
    words = {"target": "taxol@1", "control": "DMSO", "separable": None, "evidence": _used(_hits(0.8))}
    verdict = judge(rows, "model:m", **words)
    lost = "not closer to the truth than: random taxol@1 cell of the plate." in " ".join(verdict.sentences)
    assert lost is (error > 0.35)
    if lost:
        assert verdict.label == "shows the phenotype; no nearer to the truth than a null row"
    else:
        assert verdict.label == "carries the phenotype, cell by cell"


def test_one_target_leaves_open_whether_the_condition_is_used():
    rows = [row for row in _rows(hits=_hits(0.8), errors=_errors(0.3)) if not row["key"].startswith("shuffled")]
    verdict = judge(rows, "model:m", target="taxol@1", control="DMSO", separable=None)
    assert verdict.label == "carries the phenotype, cell by cell; whether the condition is used was not tested"
    assert verdict.held_up is None
    assert any("was not tested: nothing was translated to another target" in words for words in verdict.sentences)


@pytest.mark.parametrize(
    ("less", "held_up", "words"), [(-0.1, True, "cell by cell"), (-0.01, None, "not told from one")]
)
def test_what_is_no_nearer_than_its_own_mean_change_is_not_called_cell_by_cell(less, held_up, words):
    rows = _rows(hits=_hits(0.8), errors=_errors(0.3))
    rows[0]["against"]["template:model:m"] = _estimate(less, 0.02)
    verdict = judge(rows, "model:m", target="taxol@1", control="DMSO", separable=None, evidence=_used(_hits(0.8)))
    assert (verdict.held_up, words in verdict.label) == (held_up, True)
    assert "against" not in {finding.state for finding in verdict.findings}


@pytest.mark.parametrize("column", ["hit_against", "against"])
def test_without_an_interval_nothing_is_judged(column):
    rows = _rows(hits=_hits(0.8), errors=_errors(0.3))
    rows[0][column] = {key: found | {"low": None, "high": None} for key, found in rows[0][column].items()}
    verdict = judge(rows, "model:m", target="taxol@1", control="DMSO", separable=None)
    assert (verdict.label, verdict.held_up) == ("no interval", None)
    assert "80\u00a0%" in verdict.sentences[0]


def test_few_cells_give_no_verdict():
    verdict = judge(_rows(hits=_hits(0.8), n=12), "model:m", target="taxol@1", control="DMSO", separable=None)
    assert (verdict.label, verdict.held_up) == ("n too small", None)


def test_a_target_that_the_classifier_cannot_tell_is_said_first():
    blind = {"value": 0.52, "low": 0.45, "high": 0.6}
    words = judge(_rows(hits=_hits(0.8)), "model:m", target="taxol@1", control="DMSO", separable=blind).sentences
    assert words[0].startswith("Real taxol@1 cannot be told from DMSO by the classifier (AUC 0.52 (0.45 to 0.60))")


def test_more_hits_than_real_cells_are_called_overdone():
    words = judge(_rows(hits=_hits(1.0)), "model:m", target="taxol@1", control="DMSO", separable=None).sentences
    assert any("overdone" in sentence for sentence in words)


def test_the_text_table_shows_every_row_a_dash_for_what_is_missing_and_no_empty_column():
    target = {"source": "DMSO", "target": "taxol@1", "n": 100, "n_truth": 0, "n_responders": 0, "resampled": "wells"}
    target |= {"n_wells": 1, "n_sites": 4, "n_lost": 3}
    target |= {
        "rows": _rows(hits=_hits(0.8)),
        "verdicts": [{"model": "m", "label": "carries", "text": "word " * 60}],
        "notes": ["a note"],
    }
    accuracy = {"balanced_accuracy": {"not_computed": "no cells"}}
    text = text_table({"targets": [target], "classifier": accuracy, "extractors": [{"name": "features"}]})
    line = next(line for line in text.splitlines() if "model:m" in line and line.startswith("▸"))
    assert "80 [75, 85]" in line
    assert "–" in next(line for line in text.splitlines() if line.strip().startswith("real"))
    assert "score" not in text.splitlines()[1]
    assert "a note" in text
    assert text.startswith("DMSO → taxol@1: 100 cells of 1 well, 4 sites; intervals over wells")
    assert text.splitlines()[1].split() == ["hit", "%", "hit/real", "gap", "closed"]
    assert "3 translated cells left out: removed by the compound" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_text_table_explains_the_columns_that_it_shows_and_says_why_there_is_no_classifier():
    target = {"source": "DMSO", "target": "taxol@1", "n": 100, "n_truth": 0, "n_wells": 0, "resampled": "images"}
    target |= {"rows": _rows(hits=_hits(0.8)), "verdicts": [], "notes": []}
    accuracy = {"balanced_accuracy": {"not_computed": "no control"}}
    last = text_table({"targets": [target], "classifier": accuracy, "extractors": [{"name": "features"}]})
    assert "held-out cells: not computed (no control). Features: features." in last
    legend = " ".join(last.splitlines()[-2:])
    assert all(words in legend for words in ("hit %: ", "hit/real: ", "gap closed: "))
    assert not any(words in legend for words in ("error: ", "score: ", "FD, KID: "))


def _judged(hits, errors=None, **evidence):
    words = {"target": "taxol@1", "control": "DMSO", "separable": None}
    return judge(_rows(hits=hits, errors=errors), "model:m", **words, evidence={**_used(hits), **evidence})


def _plate(plate, gain, state):
    return {"plate": plate, "n": 50, "gain": _estimate(gain), "beside_others": _estimate(0), "state": state}


def _stain(channel, *words):
    return {
        "channel": channel,
        "findings": list(words),
        "empty": _estimate(0.9),
        "noisy": _estimate(0.9),
        "seen": _estimate(0.9),
        "effect": {"slope": _estimate(0)},
    }


EXCESS = {"copied": _estimate(0.9), "held_out": _estimate(0.1), "excess": _estimate(0.8)}
RETRIEVED = {"top_1": _estimate(0.02), "chance": 0.01}


@pytest.mark.parametrize(
    ("evidence", "label"),
    [
        ({"memorisation": EXCESS}, "returns training cells"),
        ({"identity": RETRIEVED | {"auc": _estimate(0.5)}}, "shows the phenotype, but not of this cell"),
        (
            {"plates": {"hits": [_plate("P1", 0.7, "works"), _plate("P2", 0.0, "fails")], "error": []}},
            "works on plate P1 only",
        ),
        ({"channels": [_stain("DNA", "dropped: most outputs have less"), _stain("ER")]}, "drops the DNA channel"),
        (
            {"channels": [_stain("ER", channels.NOISY), _stain("DNA", channels.NOISY)]},
            "adds noise to ER, DNA",
        ),
        ({"channels": [_stain("ER", "replaced: most outputs look like DNA")]}, "shows another stain as ER"),
        ({"channels": [_stain("ER", "does not change as real cells do")]}, "does not change ER as real cells do"),
        (
            {"repeats": {"share": _estimate(0.6), "sources": _estimate(0.02, 0.02), "distinct": 8}},
            "repeats its outputs",
        ),
    ],
)
def test_each_charge_is_named_and_speaks_first(evidence, label):
    verdict = _judged(_hits(0.8), **evidence)
    assert (verdict.label, verdict.held_up) == (label, False)
    assert verdict.findings[0].state == "against"


def test_a_missing_stain_explains_whatever_else_is_found():
    missing = [_stain("DNA", "dropped: most outputs have less")]
    assert _judged(_hits(0.0), _errors(0.9), channels=missing, memorisation=EXCESS).label == "drops the DNA channel"


def test_a_shift_explains_a_stain_that_looks_like_another():
    stain = [_stain("ER", "replaced: most outputs look like DNA")]
    affine = _estimate(0.98, 0.01)
    assert _judged(_hits(0.05), channels=stain, affine=affine).label == "explained by an intensity shift"


def test_what_a_shift_does_as_well_is_left_open_where_the_model_is_not_mostly_a_shift():
    verdict = _judged(_hits(0.5, shift=0.5), affine=_estimate(0.2))
    assert (verdict.label, verdict.held_up) == ("not told from an intensity shift", None)
    assert _judged(_hits(0.5, shift=0.5), affine=_estimate(0.9)).label == "explained by an intensity shift"


def test_a_shift_that_the_model_does_not_make_does_not_explain_it():
    rows = _rows(hits=_hits(0.5, shift=0.5))
    own = {"key": "imitation:model:m", "name": "DMSO with the intensities of m", "kind": "null", "n": 100}
    words = {"target": "taxol@1", "control": "DMSO", "separable": None, "evidence": _used(_hits(0.5))}
    for of_own, label in ((0.1, "not told from an intensity shift"), (0.5, "explained by an intensity shift")):
        rows[0]["hit_against"]["imitation:model:m"] = _estimate(0.5 - of_own, 0.08)
        assert judge([*rows, own], "model:m", **words).label == label


def test_without_a_control_the_distance_stands_beside_its_floor_and_nothing_is_judged():
    unknown = {"not_computed": "one condition only"}
    model = {"key": "model:m", "name": "m", "kind": "model", "n": 100, "n_distance": 30, "target_hit": unknown}
    rows = [
        model | {"frechet": _estimate(90.0, 5.0)},
        {"key": "real", "name": "real", "kind": "real", "frechet": _estimate(40.0, 5.0)},
    ]
    verdict = judge(rows, "model:m", target="taxol@1", control="control", separable=None)
    assert (verdict.label, verdict.held_up) == ("not judged: nothing at hand tells taxol@1 from a control", None)
    assert (
        "is 90.0 (85.0 to 95.0), between halves of the real ones 40.0 (35.0 to 45.0) (n = 30)" in verdict.sentences[-1]
    )


@pytest.mark.parametrize(("hits", "odds", "used"), [(0.2, -0.2, True), (0.0, 2.0, True), (0.0, 0.0, False)])
def test_a_condition_is_used_where_it_gains_hits_or_log_odds(hits, odds, used):
    gap = {"hits": _estimate(hits), "log_odds": _estimate(odds, 0.5), "plates": []}
    verdict = _judged(_hits(0.8), _errors(0.3), shuffled=gap)
    assert (verdict.label == "does not depend on its condition") is not used
    assert any(finding.key == "condition_used" for finding in verdict.findings) is used


def test_what_the_truth_of_each_cell_explains_away_speaks_no_longer_against_the_model():
    verdict = _judged(_hits(0.5, shift=0.5), _errors(0.3))
    shift = next(finding for finding in verdict.findings if finding.key == "intensity_shift")
    assert (verdict.held_up, shift.state) == (None, "open")
    assert "against" not in {finding.state for finding in verdict.findings}


def test_a_source_that_is_found_again_stands_in_for_the_truth():
    verdict = _judged(_hits(0.8), identity=RETRIEVED | {"auc": _estimate(0.95)})
    assert (verdict.label, verdict.held_up) == ("carries the phenotype, and keeps each cell recognisable", True)


def test_where_the_classifier_does_not_see_real_cells_nobody_is_accused_and_a_bare_copy_is_named_all_the_same():
    blind = {"seen": {"copy": _estimate(0.01)}}
    assert _judged(_hits(0.05, copy=0.04), **blind).label == "the classifier cannot tell the target from the control"
    by_truth = _judged(_hits(0.05, copy=0.04), _errors(0.3), **blind)
    assert by_truth.label.startswith("carries a part of the phenotype")
    assert by_truth.held_up is None
    assert _judged(_hits(0.04, copy=0.04), **blind, unchanged=True).label == "indistinguishable from DMSO"
    assert _judged(_hits(0.05, copy=0.04), seen={"copy": _estimate(0.7)}).label == "indistinguishable from DMSO"


def test_a_shift_that_real_cells_could_not_beat_either_accuses_nobody():
    hits = _hits(0.5, shift=0.5)
    weak, strong = ({"copy": _estimate(0.5), "shift": _estimate(gain)} for gain in (0.03, 0.3))
    affine = {"value": 0.9, "low": 0.8, "high": 0.95}
    assert (_judged(hits, seen=weak).label, _judged(hits, seen=weak).held_up) == (
        "not told from an intensity shift",
        None,
    )
    assert _judged(hits, seen=strong).label == "explained by an intensity shift"
    assert _judged(hits, seen=weak, affine=affine).label == "explained by an intensity shift"
