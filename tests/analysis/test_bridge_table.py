"""Claims about the tables of the bridge comparison: what is compared seed by seed, and what the rules make of it."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))

from bridge_table import gain, markdown, reduced, verdicts
from seed_means import entry, shown


def _result(arm, seed, score, *, truth=True):
    model = {"score": score, "target_hit": 0.8} if truth else {"gap_closed": 1 - score, "target_hit": 0.8}
    rows = {"model": model, "template": {"target_hit": 0.7}, "copy": {"score": 1.0, "target_hit": 0.0}}
    names = {"model": f"translated ({arm})", "copy": "copy the control"}
    return {
        "arm": arm,
        "seed": seed,
        "cpu_seconds": 170.0,
        "rows": {"taxol@1": rows, "tunicamycin@5": rows},
        "names": names,
        "swaps": {},
    }


def _results(**scores):
    return [_result(arm, seed, score) for arm, of_arm in scores.items() for seed, score in enumerate(of_arm)]


def test_the_gain_is_paired_by_seed():
    """Seeds that differ by as much as they like leave no error where the second arm gains the same in each."""
    found = gain(_results(S0=(0.2, 0.5, 0.8), S1=(0.1, 0.4, 0.7)), "S0", "S1")
    assert found.value == pytest.approx(0.1)
    assert found.error == pytest.approx(0.0, abs=1e-12)
    assert found.seeds == 3


def test_the_standard_error_is_that_of_a_mean():
    values = [0.3, 0.1, 0.7, 0.4]
    assert entry(values).error == pytest.approx(np.std(values, ddof=1) / 2)
    assert np.isnan(entry([0.3]).error)
    assert shown(entry([0.5, 0.7]), digits=0, factor=100) == "60 ± 10.0"


def test_transport_stays_unless_it_loses_by_a_standard_error():
    equal = _results(S0=(0.5, 0.5, 0.6), S1=(0.52, 0.49, 0.6))
    worse = _results(S0=(0.5, 0.5, 0.6), S1=(0.6, 0.61, 0.69))
    assert verdicts(equal)[0].splitlines()[0].startswith("S1 against S0: gains -0.003")
    assert verdicts(equal)[0].splitlines()[0].endswith(": on.")
    assert verdicts(worse)[0].splitlines()[0].endswith(": off.")


def test_refinement_stays_only_if_it_gains_a_standard_error():
    equal = _results(S1=(0.5, 0.5, 0.6), S2=(0.51, 0.5, 0.58))
    better = _results(S1=(0.5, 0.5, 0.6), S2=(0.4, 0.41, 0.49))
    assert verdicts(equal)[0].splitlines()[1].endswith(": off.")
    assert verdicts(better)[0].splitlines()[1].endswith(": on.")


def test_one_seed_decides_nothing():
    assert "two seeds or more of both are needed" in verdicts(_results(S0=(0.5,), S1=(0.1,)))[0]
    assert gain(_results(S0=(0.5,)), "S0", "S1") is None


def test_without_the_truth_the_gap_that_is_left_stands_for_the_error():
    found = [_result(arm, seed, score, truth=False) for arm, score in (("S0", 0.4), ("S1", 0.3)) for seed in (0, 1)]
    assert gain(found, "S0", "S1").value == pytest.approx(0.1)


def test_tables_hold_every_arm_its_mean_change_and_the_null_rows_once():
    text = markdown(_results(S0=(0.5, 0.6), S1=(0.4, 0.5)))
    assert len(text) == 3
    assert "| S0 | 2 | 0.550 ± 0.050 |" in text[0]
    assert text[0].count("copy the control") == 1
    assert text[0].count("mean change of S1, for every cell") == 1


def test_metrics_are_reduced_to_what_was_computed():
    row = {"key": "model:bridge", "name": "translated (bridge)", "kind": "model", "score": {"value": 0.4}}
    row |= {"frechet": {"not_computed": "too few"}}
    own = {"key": "template:model:bridge", "name": "mean change", "kind": "null", "target_hit": {"value": 0.5}}
    identity = {"key": "identity", "rows": [{"key": "model:bridge", "top_1": {"value": 0.9}, "returned": {"value": 1}}]}
    target = {"target": "taxol@1", "rows": [row, own], "sections": [identity], "verdicts": [{"label": "fine"}]}
    swap = {"key": "swap", "rows": [{"name": "translated (bridge), a and b", "cosine": {"value": 0.2}}]}
    found = reduced({"targets": [target], "sections": [swap]})
    assert found["rows"]["taxol@1"] == {"model": {"score": 0.4, "top_1": 0.9}, "template": {"target_hit": 0.5}}
    assert found["swaps"] == {"a and b": {"cosine": 0.2}}
