import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cellbridge import assembly
from cellbridge.assembly import SPARE, Base, Model, ModelCard
from cellbridge.conditions import Condition
from cellbridge.config import AdapterConfig, ConditioningConfig, NetworkConfig, ScheduleConfig, SolverConfig
from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.guidance import ClassifierFreeGuidance, DistanceGuidance, GuidanceInterval
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.samplers import Flow
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.thresholding import Clipping, DynamicThresholding
from cellbridge.errors import ConditionError, ModelError
from cellbridge.runs import RunDir, fingerprint

NETWORK = NetworkConfig(widths=(8, 8), attention_levels=())


def card(**changed: Any) -> ModelCard:
    known = {
        "kind": "base",
        "channels": ("DNA",),
        "size_px": 8,
        "conditions": ("", "DMSO", "taxol@1", SPARE),
        "network": NETWORK,
        "schedule": ScheduleConfig(),
        "plates": ("P1",),
        "store_sha256": "0",
    }
    return ModelCard(**{**known, **changed})


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({"channels": ("AGP",)}, "trained on 8 px"),
        ({"size_px": 16}, "trained on 8 px"),
        ({"control": "water"}, 'control "DMSO", but the control of s is "water"'),
    ],
)
def test_a_store_of_other_channels_size_or_control_is_refused(store: dict[str, Any], message: str) -> None:
    info: Any = SimpleNamespace(**{"channels": ("DNA",), "size_px": 8, "control": "DMSO", "path": "s", **store})
    with pytest.raises(ModelError, match=message):
        assembly.check_fit(card(), info)


def test_an_adapter_for_what_the_base_knows_has_that_name_to_itself() -> None:
    base = Base(nn.Identity(), card(), "0", make_schedule("cosine", 10))
    adapted = assembly.adapter_card(base, "taxol@1", adapter=AdapterConfig(), plates=["P2"], store_sha256="0")
    assert adapted.conditions.count("taxol@1") == 1
    assert adapted.row("taxol@1") == len(adapted.conditions) - 1
    assert adapted.condition == "taxol@1"
    assert adapted.row("DMSO") == 1


def test_averaged_weights_that_are_not_exactly_the_parameters_are_never_published(tmp_path: Path) -> None:
    network = assembly.build_network(card(), seed=0)
    ema = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    first = next(iter(ema))
    for wrong in ({k: v for k, v in ema.items() if k != first}, ema | {"more": torch.zeros(1)}):
        with pytest.raises(ModelError, match="averaged weights"):
            assembly.publish_base(RunDir(tmp_path), network, ema=wrong, card=card())
    assert not RunDir(tmp_path).model.exists()


def test_a_source_that_nothing_models_is_refused_by_its_own_name() -> None:
    base = Base(nn.Identity(), card(), "0", make_schedule("cosine", 10))
    models = {Condition("DMSO"): Model(base.denoiser(), 1, base.card)}
    with pytest.raises(ConditionError, match=r'no model of the source "taxol@1".*Known: DMSO\.'):
        assembly.build_translator("ddib", models, source=Condition("taxol", 1.0), solver=SolverConfig(), x_T="inverted")


def test_the_default_solver_is_the_flow_in_both_directions_and_wraps_nothing() -> None:
    solver = SolverConfig()
    assert assembly.build_sampler(solver) == Flow(25, 2, "quadratic")
    assert assembly.build_inversion(solver) == Inversion(25, 2, "quadratic")
    denoiser = Base(nn.Identity(), card(), "0", make_schedule("cosine", 10)).denoiser()
    assert assembly.guided(denoiser, solver, card()) is denoiser


@pytest.mark.parametrize(
    ("changed", "sampler", "inversion"),
    [
        ({"method": "ddim", "eta": 0.3}, Ddim(25, 0.3, "quadratic"), Inversion(25, 1)),
        ({"method": "ddpm", "variance": "large"}, Ddpm(25, "large", "quadratic"), Inversion()),
        ({"method": "pndm", "grid": "uniform", "runge_kutta": True}, Pndm(25, True), Inversion(grid="uniform")),
        ({"method": "dpm++", "start_noise": True}, DpmSolverPlusPlus(25, "quadratic"), Inversion(start_noise=True)),
        ({"order": 1, "fixed_point": 2}, Flow(25, 1, "quadratic"), Inversion(25, 1, fixed_point=2)),
    ],
)
def test_a_solver_s_settings_reach_its_parts(changed: dict[str, Any], sampler: Any, inversion: Inversion) -> None:
    assert assembly.build_sampler(SolverConfig(**changed)) == sampler
    assert assembly.build_inversion(SolverConfig(**changed)) == inversion


def wrapped(**changed: Any) -> Denoiser:
    base = Base(assembly.build_network(card(), seed=0), card(), "0", make_schedule("cosine", 1000))
    return assembly.guided(base.denoiser(), SolverConfig(**changed), card())


def test_thresholds_lie_around_the_interval_and_the_interval_around_guidance() -> None:
    outer = wrapped(guidance_scale=2.0, guidance_interval=(100, 600), guidance_rescale=0.7, threshold="dynamic")
    assert isinstance(outer, DynamicThresholding)
    interval = outer.denoiser
    assert isinstance(interval, GuidanceInterval)
    assert (interval.low, interval.high) == (100, 600)
    assert isinstance(interval.guided, ClassifierFreeGuidance)
    assert (interval.guided.scale, interval.guided.rescale, interval.guided.null_label) == (2.0, 0.7, 1)
    assert interval.plain is interval.guided.denoiser
    assert isinstance(wrapped(threshold="clip"), Clipping)


def test_guidance_by_distance_scales_conditions_and_leaves_the_control_and_other_rows_alone() -> None:
    denoiser = wrapped(guidance_scale=2.0, guidance_by_distance=True)
    assert isinstance(denoiser, DistanceGuidance)
    assert denoiser.scales.tolist() == pytest.approx([1.0, 1.0, 2.0, 1.0])
    assert denoiser.null_label == 1


def test_what_a_training_starts_from_is_told_by_every_file_of_the_model(tmp_path: Path) -> None:
    """Two bases of the same backbone and another conditioner are not the same start."""
    network = NetworkConfig(
        widths=(8, 8), attention_levels=(), conditioning=ConditioningConfig(scheme="late", width=8, token_dropout=0.0)
    )
    hashes = []
    for number, shift in enumerate((0.0, 0.1)):
        model = assembly.build_network(card(network=network), seed=0)
        ema = {name: p.detach() + (shift if "conditioner" in name else 0.0) for name, p in model.named_parameters()}
        assembly.publish_base(RunDir(tmp_path / str(number)), model, ema=ema, card=card(network=network))
        hashes.append(
            [fingerprint(path) for path in assembly.starting_weights(tmp_path / str(number), "base").values()]
        )
    assert hashes[0] != hashes[1]
    bare = tmp_path / "bare"
    shutil.copytree(RunDir(tmp_path / "0").model, bare)
    (bare / "manifest.json").unlink()
    assert [path.name for path in assembly.starting_weights(bare, "base").values()] == [
        "diffusion_pytorch_model.safetensors",
        "conditioner.safetensors",
    ]
