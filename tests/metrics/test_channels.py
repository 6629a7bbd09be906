"""Claims about single channels: what is named, and who is left alone."""

import numpy as np
import pytest
from drawn_cells import CHANNELS, draw, study
from scipy.ndimage import gaussian_filter

from cellbridge.metrics import channels as metric
from cellbridge.metrics.channels import Stained, channel_evidence

DRAWS = {"resamples": 100, "seed": 0}


@pytest.fixture(scope="module")
def world():
    return study(1)


def stained(part, images=None):
    return Stained(part.images if images is None else images, part.plates, part.blocks)


def judged(world, images, *, names=CHANNELS):
    arms = (stained(world[name]) for name in ("source", "real", "control"))
    return channel_evidence(stained(world["source"], images), *arms, channels=names, **DRAWS)


def findings(world, images):
    return {part.channel: part.findings for part in judged(world, images) if part.findings}


def changed(world, change):
    images = world["counterfactual"].images.copy()
    change(images)
    return images


@pytest.mark.parametrize(
    "honest",
    [
        lambda world: world["counterfactual"].images,
        lambda world: world["real"].images,
        lambda world: gaussian_filter(world["counterfactual"].images, (0, 0, 0.7, 0.7)),
    ],
    ids=["counterfactual", "other real cells", "denoised"],
)
def test_channels_that_carry_their_part_are_left_alone(world, honest):
    assert findings(world, honest(world)) == {}
    for part in judged(world, honest(world)):
        assert part.effect.slope.low > 0
        assert part.seen_as == part.channel


@pytest.mark.parametrize("fill", [-1.0, 0.3, "noise"])
def test_a_dropped_channel_is_named(world, fill):
    noise = np.random.default_rng(0).normal(-0.8, 0.03, (120, 24, 24))

    def drop(images):
        images[:, 0] = noise if fill == "noise" else fill

    found = findings(world, changed(world, drop))
    assert list(found) == ["DNA"]
    assert found["DNA"][0].startswith("dropped")


def test_noise_on_a_channel_is_named_and_noise_that_real_cells_have_is_not(world):
    images = world["counterfactual"].images
    noise = np.random.default_rng(1).standard_normal(images[:, 1].shape).astype(np.float32)
    grain = (images - metric._smoothed(images)).std(axis=(2, 3))[:, 1]

    def add(images):
        images[:, 1] += 3 * grain.mean() * noise

    noisy = judged(world, changed(world, add))
    assert {part.channel: part.findings for part in noisy if part.findings} == {"ER": (metric.NOISY,)}
    assert noisy[1].noisy.low > 0.5
    for honest in (images, world["real"].images):
        assert all(part.noisy.value < 0.2 for part in judged(world, honest))


def test_one_image_for_all_cells_is_named(world):
    def average(images):
        images[:, 2] = images[:, 2].mean(axis=0) * 1.0 + 0.2 * images[0, 2]

    found = findings(world, changed(world, average))
    assert list(found) == ["Mito"]
    assert "the same in all cells" in found["Mito"]


def test_a_channel_that_was_left_as_it_was_is_named_and_only_that_one(world):
    def leave(images):
        images[:, 1] = world["source"].images[:, 1]

    assert findings(world, changed(world, leave)) == {"ER": ("does not change as real cells do",)}


def test_a_copier_changes_no_channel_as_real_cells_do(world):
    found = judged(world, world["source"].images)
    assert all(part.findings == ("does not change as real cells do",) for part in found)
    assert all((part.effect.slope.low, part.effect.slope.high) == (0, 0) for part in found)


def test_a_compound_that_leaves_a_channel_alone_accuses_nobody(world):
    """Under a compound without effect, copying is right."""
    unmoved = world | {"real": draw(77)}
    for part in judged(unmoved, world["source"].images):
        assert not part.changes
        assert part.findings == ()


def test_a_channel_that_was_filled_with_another_one_is_named(world):
    def repeat(images):
        images[:, 0] = 0.7 * images[:, 1] - 0.1

    found = findings(world, changed(world, repeat))
    assert list(found) == ["DNA"]
    assert "repeats ER" in found["DNA"]


def test_exchanged_channels_are_named(world):
    def exchange(images):
        images[:, [0, 1]] = images[:, [1, 0]]

    found = findings(world, changed(world, exchange))
    assert set(found) == {"DNA", "ER"}
    assert "replaced: most outputs look like DNA" in found["ER"]


def test_descriptors_of_a_ramp_in_closed_form():
    ramp = np.tile(np.linspace(-1, 1, 21), (21, 1))[None, None]
    found = dict(zip(metric.DESCRIPTORS, metric.descriptors(ramp)[0, 0], strict=True))
    assert found["mean"] == pytest.approx(0, abs=1e-12)
    assert found["sd"] == pytest.approx(np.sqrt((21**2 - 1) / 12) * 0.1)
    assert (found["p10"], found["p50"], found["p90"]) == pytest.approx((-0.8, 0.0, 0.8))
    assert not metric.descriptors(np.full((1, 1, 8, 8), 0.3))[0, 0, 6:].any()


def test_one_channel_has_no_twin_and_is_seen_as_itself(world):
    alone = {name: type(part)(part.images[:, :1], part.plates, part.wells) for name, part in world.items()}
    (found,) = judged(alone, alone["counterfactual"].images, names=("DNA",))
    assert (found.twin, found.seen_as, found.findings) == (None, "DNA", ())
    assert found.to_dict()["twinned"]["not_computed"]


def test_the_order_of_the_outputs_channels_changes_their_names_alone(world):
    order = [2, 0, 1]
    moved = {name: type(part)(part.images[:, order], part.plates, part.wells) for name, part in world.items()}
    names = tuple(CHANNELS[index] for index in order)
    found = {part.channel: part for part in judged(world, world["counterfactual"].images)}
    for part in judged(moved, moved["counterfactual"].images, names=names):
        assert part.empty == found[part.channel].empty
        assert part.effect.slope.value == pytest.approx(found[part.channel].effect.slope.value)


@pytest.mark.slow
def test_honest_models_are_accused_in_at_most_one_study_of_twenty():
    accused = [bool(findings(world, world["counterfactual"].images)) for world in map(study, range(40))]
    assert np.mean(accused) <= 0.05
