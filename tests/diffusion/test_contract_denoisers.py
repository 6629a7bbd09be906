"""What every denoiser keeps: shape, gradients, independence of its batch, and the global random state."""

import importlib
import pkgutil

import pytest
import torch

from cellbridge import diffusion
from cellbridge.config import NetworkConfig
from cellbridge.diffusion.classifier_guidance import ClassifierGuidance
from cellbridge.diffusion.denoiser import Denoiser, NetworkDenoiser
from cellbridge.diffusion.guidance import Autoguidance, ClassifierFreeGuidance, DistanceGuidance, GuidanceInterval
from cellbridge.diffusion.inversion import invert
from cellbridge.diffusion.part_way import PartWay
from cellbridge.diffusion.samplers import sample
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.thresholding import Clipping, DynamicThresholding, confines
from cellbridge.diffusion.watching import Watched
from cellbridge.networks.unet import build_unet


def network_denoiser(prediction: str, kind: str = "cosine") -> Denoiser:
    config = NetworkConfig(widths=(8, 16), attention_levels=(1,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_unet(config, channels=2, size_px=8, conditions=3)
    return NetworkDenoiser(network, make_schedule(kind, 1000), prediction)


def in_interval(denoiser: Denoiser) -> Denoiser:
    return GuidanceInterval(ClassifierFreeGuidance(denoiser, 2.0), denoiser, low=0, high=500)


def by_brightness(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x_t.mean((1, 2, 3))[:, None] * torch.tensor([-1.0, 0.0, 1.0])


DENOISERS = {
    "v": lambda: network_denoiser("v"),
    "x_0": lambda: network_denoiser("x_0"),
    "epsilon": lambda: network_denoiser("epsilon", kind="linear"),
    "guided": lambda: ClassifierFreeGuidance(network_denoiser("v"), 2.0),
    "guided and rescaled": lambda: ClassifierFreeGuidance(network_denoiser("v"), 2.0, rescale=0.7),
    "guided by distance": lambda: DistanceGuidance(network_denoiser("v"), torch.tensor([1.0, 2.0, 3.0]), 0),
    "guided in an interval": lambda: in_interval(network_denoiser("v")),
    "guided by a classifier": lambda: ClassifierGuidance(network_denoiser("v"), by_brightness),
    "guided by a weaker self": lambda: Autoguidance(network_denoiser("v"), network_denoiser("x_0"), 1.5),
    "guided by a weaker self of other rows": lambda: Autoguidance(
        network_denoiser("v"), network_denoiser("x_0"), 1.5, weaker_label=2
    ),
    "clipped": lambda: Clipping(network_denoiser("v"), 2.0),
    "thresholded": lambda: DynamicThresholding(network_denoiser("v"), percentile=0.9),
    "part of the way": lambda: PartWay(network_denoiser("v"), 1.0),
    "watched": lambda: Watched(network_denoiser("v")),
}


def test_every_denoiser_of_the_diffusion_part_is_here():
    for module in pkgutil.iter_modules(diffusion.__path__, "cellbridge.diffusion."):
        importlib.import_module(module.name)
    own = {kind for kind in Denoiser.__subclasses__() if kind.__module__.startswith("cellbridge.diffusion.")}
    own = {kind for kind in own if not kind.__name__.startswith("_")}  # one notes times, and denoises nothing
    inner = {type(part) for build in DENOISERS.values() for part in build().modules() if isinstance(part, Denoiser)}
    assert inner == own


@pytest.fixture(params=DENOISERS)
def denoiser(request) -> Denoiser:
    return DENOISERS[request.param]()


@pytest.fixture
def noisy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_t = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return x_t, torch.tensor([-0.5, 0.0, 3.7, 400.0, 900.25, 999.0]), torch.tensor([0, 1, 2, 0, 1, 2])


def test_the_estimate_has_the_shape_and_type_of_the_images(denoiser, noisy):
    x_0 = denoiser(*noisy)
    assert x_0.shape == noisy[0].shape
    assert x_0.dtype == torch.float32
    assert torch.isfinite(x_0).all()


def test_every_parameter_receives_a_gradient(denoiser, noisy):
    denoiser(*noisy).square().mean().backward()
    without = [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_an_estimate_does_not_depend_on_its_batch(denoiser, noisy):
    with torch.no_grad():
        together = denoiser(*noisy)
        alone = torch.cat([denoiser(*(part[i : i + 1] for part in noisy)) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_solved_images_do_not_depend_on_their_batch(denoiser, noisy):
    x_T, _, labels = noisy
    together = sample(denoiser, x_T, labels, steps=2)
    alone = torch.cat([sample(denoiser, x_T[part], labels[part], steps=2) for part in (slice(0, 1), slice(1, 6))])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-3)


def test_the_estimate_follows_label_and_time(denoiser, noisy):
    x_t, t, labels = noisy
    x_0 = denoiser(x_t, t, labels)
    assert not torch.equal(x_0, denoiser(x_t, t, labels.flip(0)))
    assert not torch.equal(x_0, denoiser(x_t, t + 0.25, labels))


def test_the_global_random_state_is_left_alone(denoiser, noisy):
    x_t, _, labels = noisy
    state = torch.get_rng_state()
    x_0 = sample(denoiser, x_t, labels, steps=2)
    if not confines(denoiser):
        invert(denoiser, x_0, labels, steps=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_saved_and_loaded_give_the_same_estimate(denoiser, noisy):
    expected = denoiser(*noisy)
    weights = {name: value.clone() for name, value in denoiser.state_dict().items()}
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.zero_()
    denoiser.load_state_dict(weights)
    assert torch.equal(denoiser(*noisy), expected)


def test_bf16_networks_still_give_float32_estimates(denoiser, noisy):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert denoiser(*noisy).dtype == torch.float32
