"""Claims about counted arithmetic: it is that of the closed form, and counting changes nothing."""

import pytest
import torch
from small_training import digest, events
from torch import nn

from cellbridge.runs import RunDir
from cellbridge.training import checkpoint, throughput
from cellbridge.training.events import Logged
from cellbridge.training.throughput import Throughput, count_flops, device_peak, flops_per_image, peak_of

IMAGES, CHANNELS, WIDTH, SIZE, OUT = 4, 3, 8, 10, 5
CONVOLUTION = 2 * CHANNELS * WIDTH * 9 * SIZE**2
LINEAR = 2 * WIDTH * SIZE**2 * OUT


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), *middle, nn.Flatten(), nn.Linear(WIDTH * SIZE**2, OUT)
    )


def loss_of(module):
    images = torch.randn(IMAGES, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return lambda: module(images).square().mean()


def test_a_step_costs_forward_weight_and_input_products():
    module = network()  # the first layer's input needs no gradient
    expected = (CONVOLUTION + LINEAR) + (CONVOLUTION + LINEAR) + LINEAR
    assert flops_per_image(module, loss_of(module), images=IMAGES) == expected


def test_frozen_weights_cost_less_than_three_forward_passes():
    module = network()
    module[0].requires_grad_(False)
    assert flops_per_image(module, loss_of(module), images=IMAGES) == CONVOLUTION + LINEAR + LINEAR
    module[0].requires_grad_(True)
    module[2].requires_grad_(False)
    expected = CONVOLUTION + LINEAR + LINEAR + CONVOLUTION
    assert flops_per_image(module, loss_of(module), images=IMAGES) == expected < 3 * (CONVOLUTION + LINEAR)


def test_recomputed_activations_are_not_counted():
    class Block(nn.Module):
        gradient_checkpointing = True

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(SIZE, SIZE)

        def forward(self, x):
            if self.gradient_checkpointing:
                return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)
            return self.layer(x)

    module = network(Block())
    plain = network(nn.Linear(SIZE, SIZE))
    assert count_flops(module, loss_of(module)) == count_flops(plain, loss_of(plain))
    assert module[1].gradient_checkpointing


def test_counting_leaves_weights_gradients_buffers_and_random_state_alone():
    module = network(nn.BatchNorm2d(WIDTH), nn.Dropout(0.5))
    loss = loss_of(module)
    loss().backward()
    before = {**module.state_dict(), **{f"grad {n}": p.grad for n, p in module.named_parameters()}}
    before = {name: tensor.clone() for name, tensor in before.items()}
    state = torch.get_rng_state()
    count_flops(module, loss)
    after = {**module.state_dict(), **{f"grad {n}": p.grad for n, p in module.named_parameters()}}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_that_logs_its_share_of_the_peak_has_the_numbers_of_any_other(tmp_path, monkeypatch):
    plain = list(events(tmp_path / "plain"))
    monkeypatch.setattr(throughput, "device_peak", lambda device, dtype: 1e9)
    seen = [event for event in events(tmp_path / "counted") if isinstance(event, Logged)]
    saved = [checkpoint.load(RunDir(tmp_path / name).checkpoint(24)) for name in ("plain", "counted")]
    assert digest(saved[0].ema) == digest(saved[1].ema)
    assert digest(saved[0].optimizer) == digest(saved[1].optimizer)
    flops = 8 * 2 * (2 * 6 * 16 + 3 * 16 * 1)  # a batch of 8; the first layer's input needs no gradient
    for event in seen:
        rate = flops / event.values["seconds_per_step"]
        assert event.values["tflops_per_second"] == pytest.approx(rate / 1e12)
        assert event.values["mfu"] == pytest.approx(rate / 1e9)
    assert not any("mfu" in event.values for event in plain if isinstance(event, Logged))


def test_the_share_of_the_peak_is_of_all_devices():
    assert Throughput(flops_per_step=6e12, peak=2 * 4e12).values(1.5) == {"tflops_per_second": 4.0, "mfu": 0.5}


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H200", 989.4e12, 66.9e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756e12, 51.2e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
    ],
)
def test_the_peak_goes_by_name_and_type(name, bf16, fp32):
    assert peak_of(name, torch.bfloat16, tf32=True) == bf16
    assert peak_of(name, torch.float32, tf32=False) == fp32
    assert fp32 <= peak_of(name, torch.float32, tf32=True) < bf16


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla T4"])
def test_a_device_that_is_not_in_the_table_has_no_peak(name):
    assert peak_of(name, torch.bfloat16, tf32=True) is None
    assert device_peak(torch.device("cpu"), torch.float32) is None
