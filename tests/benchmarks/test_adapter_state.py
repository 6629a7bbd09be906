"""The counted training state is the one that a training holds and saves."""

import pytest
import torch
from adapter_state import compare, count_state

from cellbridge.adapters import lora
from cellbridge.config import AdapterConfig, NetworkConfig, TrainingConfig
from cellbridge.networks.unet import build_unet
from cellbridge.runs import RunDir
from cellbridge.training.loop import LossOutput, fit

TINY = NetworkConfig(widths=(8, 8), attention_levels=(1,))
SIZES = {"channels": 2, "conditions": 3, "size_px": 8}


def small(adapted: bool) -> torch.nn.Module:
    network = build_unet(TINY, **SIZES)
    return lora.attach(network, rank=2) if adapted else network


def loss(network: torch.nn.Module, images: torch.Tensor) -> LossOutput:
    t, labels = torch.full((len(images),), 5.0), torch.zeros(len(images), dtype=torch.int64)
    return LossOutput(network(images, t, class_labels=labels, return_dict=False)[0].square().mean())


@pytest.mark.parametrize("adapted", [False, True])
def test_the_count_is_what_a_checkpoint_takes_on_disk(tmp_path, adapted):
    full, (adapter,) = compare(TINY, [AdapterConfig(rank=2)], **SIZES)
    config = TrainingConfig(steps=1, batch_size=2, precision="fp32")
    network, run = small(adapted), RunDir(tmp_path)
    images = torch.zeros(2, 2, 8, 8)
    list(fit(network, loss, lambda *_: images, config=config, run=run, identity={}, device=torch.device("cpu")))
    files = [run.checkpoint(1) / f"{name}.safetensors" for name in ("weights", "ema", "optimizer")]
    counted = adapter if adapted else full
    assert counted.checkpoint == sum(path.stat().st_size for path in files)
    assert counted.trainable == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_gradients_and_average_are_four_bytes_a_weight_and_adam_eight_with_a_step_for_each_tensor():
    network = torch.nn.Linear(3, 5, device="meta")
    counted = count_state(network)
    assert (counted.trainable, counted.gradients, counted.ema) == (20, 80, 80)
    assert counted.optimizer == 2 * 80 + 2 * 4
    assert counted.held == 80 + 80 + 168
