import math

import pytest
import torch
from torch import nn

from cellbridge.config import TrainingConfig
from cellbridge.errors import CheckpointError
from cellbridge.training import optim


def test_learning_rate_is_a_ramp_then_half_a_cosine():
    config = TrainingConfig(steps=110, warmup_steps=10, learning_rate=2.0)
    assert [optim.learning_rate(k, config) for k in (1, 5, 10)] == pytest.approx([0.2, 1.0, 2.0])
    assert optim.learning_rate(11, config) == pytest.approx(2.0)
    assert optim.learning_rate(61, config) == pytest.approx(1.0)
    assert optim.learning_rate(110, config) == pytest.approx(1 + math.cos(math.pi * 99 / 100))


def test_constant_learning_rate_follows_the_ramp():
    config = TrainingConfig(steps=20, warmup_steps=0, decay="constant", learning_rate=0.5)
    assert {optim.learning_rate(k, config) for k in range(1, 21)} == {0.5}


def test_state_comes_back_bit_for_bit_and_continues_alike():
    def stepped(first: int, state=None) -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
        optimizer = optim.make_optimizer(list(layer.parameters()), TrainingConfig())
        if state is not None:
            layer.load_state_dict(state[0])
            optim.load_state_tensors(optimizer, dict(layer.named_parameters()), state[1])
        for k in range(first, first + 3):
            optimizer.zero_grad()
            layer(torch.full((1, 5), float(k))).square().sum().backward()
            optimizer.step()
        return layer, optimizer

    layer, optimizer = stepped(0)
    saved = {k: v.clone() for k, v in layer.state_dict().items()}
    tensors = {k: v.clone() for k, v in optim.state_tensors(optimizer, dict(layer.named_parameters())).items()}
    for k in range(3, 6):
        optimizer.zero_grad()
        layer(torch.full((1, 5), float(k))).square().sum().backward()
        optimizer.step()
    resumed, _ = stepped(3, (saved, tensors))
    assert torch.equal(resumed.weight, layer.weight)


def test_state_of_another_network_is_refused():
    layer = nn.Linear(2, 2)
    optimizer = optim.make_optimizer(list(layer.parameters()), TrainingConfig())
    with pytest.raises(CheckpointError, match="no trainable parameter"):
        optim.load_state_tensors(optimizer, dict(layer.named_parameters()), {"step/other": torch.zeros(())})
    wrong = {f"{key}/weight": torch.zeros(3) for key in optim.STATE}
    with pytest.raises(CheckpointError, match="another shape"):
        optim.load_state_tensors(optimizer, dict(layer.named_parameters()), wrong)
