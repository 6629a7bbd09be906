"""Solver settings that do nothing, or that cannot work together, are refused by name."""

import pytest

from cellbridge.assembly import build_sampler
from cellbridge.config import DenoiserFitConfig, SolverConfig
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConfigError, ModelError
from cellbridge.fitting import require_runs
from cellbridge.settings import dump, load


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eta=0.5"], "eta = 0.5 is of method ddim, found method flow"),
        (["method=ddim", "eta=1.5"], '"eta" = 1.5: Input should be less than or equal to 1'),
        (["method=ddim", "variance=large"], "variance = large is of method ddpm"),
        (["method=dpm++", "order=1"], "order = 1 is of method flow"),
        (["runge_kutta=true"], "runge_kutta = True is of method pndm"),
        (["method=pndm"], "needs equal steps in t, found grid quadratic; use grid: uniform"),
        (["fixed_point=2"], "use method ddim, or order 1"),
        (["start_noise=true", "grid=uniform"], "use quadratic or log_snr"),
        (["guidance_interval=[100, 600]"], "guidance_interval does nothing at guidance_scale 1"),
        (["guidance_rescale=0.7"], "guidance_rescale does nothing at guidance_scale 1"),
        (["guidance_scale=2", "guidance_interval=[600, 100]"], "the first time is after the last"),
        (["guidance_scale=2", "guidance_by_distance=true", "guidance_rescale=0.7"], "leave the other setting out"),
        (["guidance_scale=2", "method=ddpm", "variance=learned"], "guidance mixes two"),
        (["threshold_largest=1.0"], "greater than 1"),
        (["threshold_percentile=0.9"], "threshold_percentile = 0.9 is of threshold dynamic, found none"),
        (["threshold=clip", "threshold_largest=3"], "threshold_largest = 3.0 is of threshold dynamic, found clip"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, message):
    with pytest.raises(ConfigError) as refusal:
        load(SolverConfig, overrides=overrides)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=ddim", "eta=0.5", "fixed_point=2"],
        ["method=pndm", "grid=uniform", "runge_kutta=true"],
        ["guidance_scale=2", "guidance_interval=[100, 600.5]", "guidance_rescale=0.7", "threshold=dynamic"],
    ],
)
def test_what_is_accepted_is_read_back_from_its_dump(overrides, tmp_path):
    config = load(SolverConfig, overrides=overrides)
    (tmp_path / "solver.yaml").write_text(dump(config))
    assert load(SolverConfig, file=tmp_path / "solver.yaml") == config


def test_sample_grids_are_not_guided_by_embeddings_that_are_still_trained():
    with pytest.raises(ConfigError, match="have no distances yet"):
        load(DenoiserFitConfig, overrides=["store=x", "sampler.guidance_scale=2", "sampler.guidance_by_distance=true"])


@pytest.mark.parametrize(
    ("changed", "kind", "error"),
    [
        ({"method": "pndm", "grid": "uniform", "runge_kutta": True}, "cosine", ConfigError),
        ({"method": "pndm", "grid": "uniform", "steps": 1}, "linear", ConfigError),
        ({"method": "ddpm", "variance": "learned"}, "linear", ModelError),
    ],
)
def test_a_sampler_that_cannot_draw_the_grids_is_refused_before_training(changed, kind, error):
    with pytest.raises(error):
        require_runs(build_sampler(SolverConfig(**changed)), make_schedule(kind, 1000), learned=False)


@pytest.mark.parametrize("method", ["flow", "ddim", "ddpm", "dpm++"])
def test_samplers_that_can_draw_the_grids_are_not_refused(method):
    for kind in ("linear", "cosine"):
        require_runs(build_sampler(SolverConfig(method=method)), make_schedule(kind, 1000), learned=False)
