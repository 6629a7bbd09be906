import pytest
import torch
from torch import nn

from cellbridge.training import ema


def test_warm_up_begins_with_the_weights_themselves():
    assert [ema.warmed_decay(k, 0.999) for k in (0, 1, 10)] == pytest.approx([0.0, 2 / 11, 11 / 20])
    assert ema.warmed_decay(10**6, 0.999) == 0.999


def test_an_average_of_long_memory_forgets_half_in_the_published_number_of_steps():
    assert ema.warmed_decay(10**6, 0.9999) ** 6931 == pytest.approx(0.5, rel=1e-4)


def test_average_of_a_constant_is_that_constant():
    weights = [torch.randn(7, generator=torch.Generator().manual_seed(0))]
    average = [weights[0].clone()]
    for k in range(50):
        ema.update(average, weights, updates=k, decay=0.99)
    assert torch.allclose(average[0], weights[0], atol=1e-6)


def test_average_agrees_with_diffusers():
    from diffusers.training_utils import EMAModel  # after cellbridge, whose guard lets torchvision import

    layer = nn.Linear(4, 4)
    oracle = EMAModel(layer.parameters(), decay=0.9)
    average = [p.detach().clone() for p in layer.parameters()]
    generator = torch.Generator().manual_seed(1)
    for k in range(30):
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        oracle.step(layer.parameters())
        ema.update(average, [p.detach() for p in layer.parameters()], updates=k, decay=0.9)
    for ours, theirs in zip(average, oracle.shadow_params, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_applied_restores_weights_and_mode_exactly():
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    with ema.applied(layer, {"weight": torch.zeros(3, 3)}):
        assert not layer.training
        assert layer.weight.abs().sum() == 0
    assert layer.training
    assert torch.equal(layer.weight, before)


def test_a_digest_is_of_names_types_shapes_and_every_bit():
    weights = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    same = {"b": torch.ones(2, dtype=torch.bfloat16), "a": torch.arange(12.0)[::2] / 2}
    assert ema.digest(weights) == ema.digest(same), "in any order, and however they lie in memory"
    nearly = torch.arange(6.0)
    nearly[5] = torch.nextafter(nearly[5], torch.tensor(9.0))
    others = [{"a": nearly}, {"a": torch.arange(6.0).view(2, 3)}, {"a": torch.arange(6.0).double()}]
    found = {ema.digest({**weights, **other}) for other in others} | {
        ema.digest({"c": weights["a"], "b": weights["b"]})
    }
    assert len(found | {ema.digest(weights)}) == 5
