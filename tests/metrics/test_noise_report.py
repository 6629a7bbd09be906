"""Claims about what is said of x_T: what the solver did is told from what the model did, and the report is plain JSON."""

import json

import numpy as np
import pytest

from cellbridge.metrics.gaussianity import battery
from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.noise_changes import Noise, changes
from cellbridge.metrics.noise_report import noise_report

WELLS = Blocks(np.arange(64) // 8, "wells")
SETTINGS = {"resamples": 100, "seed": 0}


def noise(seed, *, scale=1.0, n=64, known=True):
    rng = np.random.default_rng(seed)
    x_T = scale * rng.standard_normal((n, 3, 16, 16))
    inside = np.zeros((n, 16, 16), bool)
    inside[:, 4:12, 4:12] = True
    x_0 = -0.8 + 0.5 * inside[:, None] * rng.uniform(0.5, 1.5, (n, 3, 1, 1))
    blocks = WELLS.take(np.arange(n))
    return Noise(x_T, x_0, inside, blocks) if known else Noise(x_T, blocks=blocks)


def by_name(entries, name="variance"):
    """Return a test or a change, as an object or as JSON, by its name."""
    return next(e for e in entries if (e["name"] if isinstance(e, dict) else e.name) == name)


def test_a_change_between_two_noises_of_the_same_cells_is_paired():
    """What both share cancels: the interval of 2 % less variance is a twentieth of that of the variance itself."""
    rng = np.random.default_rng(14)
    spread = (1 + 0.1 * rng.standard_normal(8))[WELLS.codes][:, None, None, None]
    before = Noise(rng.standard_normal((64, 3, 16, 16)) * spread, blocks=WELLS)
    after = Noise(np.sqrt(0.98) * before.x_T, blocks=WELLS)
    variance = next(change for change in changes(before, after, paired=True) if change.name == "variance")
    assert variance.difference.value == pytest.approx(-0.02 * variance.before)
    alone = next(test for test in battery(before.x_T, blocks=WELLS) if test.name == "variance")
    assert variance.difference.high - variance.difference.low < (alone.high - alone.low) / 20
    same = changes(before, before, paired=True)
    assert all(c.difference.value == c.difference.low == 0 for c in same if c.difference.low is not None)


def test_a_contrast_of_other_cells_covers_no_difference_and_finds_one():
    alike = [by_name(changes(noise(i, known=False), noise(i + 50, n=48, known=False), paired=False)) for i in range(12)]
    assert sum(change.difference.low < 0 < change.difference.high for change in alike) >= 9
    quieter = {c.name: c.difference for c in changes(noise(0), noise(1, scale=0.95), paired=False)}
    assert quieter["variance"].high < 0


def test_only_what_both_noises_can_show_is_compared():
    named = {change.name for change in changes(noise(0), noise(1, known=False), paired=False)}
    assert "variance" in named
    assert not named & {"correlation with x_0", "background / foreground"}


def test_noises_of_other_cells_are_not_paired():
    with pytest.raises(ValueError, match="expected noises of the same cells"):
        changes(noise(0), noise(1, n=32), paired=True)


@pytest.fixture(scope="module")
def report():
    """A model whose x_T is too quiet by 10 % of its variance, of which half is gone in twice the steps."""
    model, few = noise(0, scale=np.sqrt(0.9)), slice(0, 24)
    same = Noise(model.x_T[few], model.x_0[few], model.foreground[few], WELLS.take(np.arange(24)))
    doubled = Noise(same.x_T * np.sqrt(0.95 / 0.9), same.x_0, same.foreground, same.blocks)
    references = {"double steps": doubled, "generated": noise(2, scale=np.sqrt(0.95), known=False), "train": noise(3)}
    return noise_report({"ddib": model}, references=references, same_cells=same, alpha_T=0.3, **SETTINGS)


def test_the_solver_s_part_is_the_difference_of_n_and_2n_steps(report):
    found = by_name(report["discretisation"])
    assert found["before"] == pytest.approx(0.9, abs=0.02)
    assert found["difference"]["value"] == pytest.approx(found["before"] * 0.05 / 0.9)
    assert found["difference"]["low"] > 0


def test_the_misfit_is_held_out_against_training_cells(report):
    found = by_name(report["misfit"])
    assert found["before"] == pytest.approx(1.0, abs=0.02)
    assert found["difference"]["high"] < 0


def test_what_is_beyond_generated_images_is_the_model_s_on_real_cells(report):
    """Generated images inverted again have 0.95, real cells 0.9 of the variance of noise."""
    found = by_name(report["beyond_generated"])
    assert found["difference"]["value"] == pytest.approx(-0.05, abs=0.02)
    assert found["difference"]["high"] < 0


def test_fresh_noise_passes_and_a_quiet_model_does_not(report):
    assert by_name(report["fresh"])["state"] == "inside"
    assert by_name(report["models"]["ddib"])["state"] == "outside"
    assert report["classifier"]["ddib"]["effect"] > report["classifier"]["fresh"]["effect"]
    assert report["frechet"]["ddib"][2]["p"] == 0.01


def test_what_the_schedule_leaves_of_the_image_is_seen_in_diffused_images_alone(report):
    """alpha_T = 0.3: the correlation with x_0 is 0.3 times the images' deviation, in units of the noise."""
    diffused = by_name(report["references"]["diffused"]["tests"], "correlation with x_0")
    assert diffused["effect"] > 0.02
    assert diffused["p_holm"] < 1e-6
    assert by_name(report["models"]["ddib"], "correlation with x_0")["p"] > 1e-3


def test_a_report_is_strict_json_and_says_what_is_missing(report):
    assert set(json.loads(json.dumps(report, allow_nan=False))) == set(report)
    alone = noise_report({"ddib": noise(0, n=12)}, references={}, **SETTINGS)
    json.dumps(alone, allow_nan=False)
    assert set(alone) == set(report)
    assert all("not_computed" in entry for entry in alone["references"].values())
    assert "not_computed" in alone["discretisation"]
    assert "not_computed" in alone["classifier"]["ddib"]
    assert len(alone["models"]["ddib"]) == 11
