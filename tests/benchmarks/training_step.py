"""The engine's training step against a bare loop: same network, type, optimiser and batch, in interleaved blocks of one process.

    python tests/benchmarks/training_step.py [--blocks 12] [--steps 8] [--batch 32] [--json]

The engine pays for what it does: EMA, dequantisation and flips of 16-bit counts, monitors per timestep band, the host reading them
once a block, events.jsonl, TensorBoard, the progress line, and checkpoints (their measured cost is spread over `checkpoint_every`
steps). The bare loop has float images ready in memory and does nothing else. Printed: median ratio of the two with its
interval (bootstrap over pairs of blocks), and images/s of both; on a CPU also the ratio of processor times, which is what a
machine shared with other work can still be judged by.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cellbridge.config import TrainingConfig
from cellbridge.data.dataset import BatchSource, CellData
from cellbridge.data.intensity import fit_intensity
from cellbridge.diffusion.fitting import denoising_loss, noised_batches
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.runs import RunDir
from cellbridge.runtime import autocast, pick_device, pick_precision
from cellbridge.training.events import Event, Logged, Saved, show
from cellbridge.training.loop import fit

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
CELLS = 1024
STEPS_T = 1000


def build(size_px: int) -> nn.Module:
    """The network of the demo: 1.1 to 1.6 million parameters, attention at the coarsest level."""
    from diffusers import UNet2DModel  # after cellbridge, whose guard lets torchvision import

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size_px,
        in_channels=len(CHANNELS),
        out_channels=len(CHANNELS),
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=3,
    )


def bare_loop(network: nn.Module, images: Tensor, labels: Tensor, *, batch: int, dtype: torch.dtype) -> Iterator[None]:
    """The shortest honest loop: fused AdamW, clipped gradients, v-prediction, data in memory; one step per `next`."""
    device = images.device
    alpha_bar = make_schedule("cosine", STEPS_T).alpha_bar.float().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    network.to(device).train()
    while True:
        rows = torch.randint(len(images), (batch,), device=device)
        x_0, t = images[rows], torch.randint(STEPS_T, (batch,), device=device)
        epsilon = torch.randn_like(x_0)
        alpha, sigma = (level.sqrt().view(-1, 1, 1, 1) for level in (alpha_bar[t], 1 - alpha_bar[t]))
        with autocast(device, dtype):
            v = network(alpha * x_0 + sigma * epsilon, t, class_labels=labels[rows], return_dict=False)[0]
            loss = (v.float() - (alpha * epsilon - sigma * x_0)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def cells(size_px: int, device: torch.device) -> CellData:
    """Return noise at the brightness of a camera image: speed does not depend on what is seen."""
    rng = np.random.default_rng(0)
    counts = rng.gamma(2.0, 400.0, (CELLS, len(CHANNELS), size_px, size_px)).astype(np.uint16)
    intensity = fit_intensity({"P1": counts}, channels=CHANNELS, full_scale=65535)
    labels = torch.full((CELLS,), 1)
    return CellData(counts, plates=["P1"] * CELLS, intensity=intensity, labels=labels, device=device)


class Interleaved:
    """The engine's events with a block of the bare loop, apart from its clock, after each log step.

    Times are (wall, processor) seconds.
    """

    def __init__(self, events: Iterator[Event], bare: Iterator[None], *, steps: int, device: torch.device):
        self.events, self.bare, self.steps, self.device = events, bare, steps, device
        self.engine: list[np.ndarray] = []
        self.loop: list[np.ndarray] = []
        self.saves: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Event]:
        mark, spent = now(), np.zeros(2)
        for event in self.events:
            if isinstance(event, Saved):
                self.saves.append(now() - mark)
            else:
                spent += now() - mark
            if isinstance(event, Logged):
                self._block()
                self.engine.append(spent / self.steps)
                spent = np.zeros(2)
            mark = now()  # what the reader of the events does counts, too
            yield event

    def _block(self) -> None:
        began = now()
        for _ in range(self.steps):
            next(self.bare)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.loop.append((now() - began) / self.steps)


def now() -> np.ndarray:
    """Wall and processor seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def measure(*, blocks: int, steps: int, batch: int, size_px: int) -> dict[str, object]:
    """Run both side by side; the first block of each warms up and is not counted."""
    device = pick_device("auto")
    config = TrainingConfig(
        steps=(blocks + 1) * steps, batch_size=batch, log_every=steps, checkpoint_every=steps * (blocks // 2)
    )
    dtype = pick_precision(config.precision, device)
    data = cells(size_px, device)
    images = data.batch(torch.arange(CELLS))
    schedule = make_schedule("cosine", STEPS_T).to(device)
    source = BatchSource(data, batch_size=batch, seed=0)
    batches = noised_batches(source, steps=STEPS_T, seed=0, condition_dropout=0.1, device=device)
    with tempfile.TemporaryDirectory() as directory:
        run = RunDir(Path(directory))
        loss = denoising_loss(schedule, "v")
        events = fit(build(size_px), loss, batches, config=config, run=run, identity={}, device=device)
        bare = bare_loop(build(size_px), images, data.labels, batch=batch, dtype=dtype)
        both = Interleaved(events, bare, steps=steps, device=device)
        show(iter(both), run=run, description="engine", total=config.steps, images_per_step=batch)
    every = TrainingConfig.model_fields["checkpoint_every"].default
    engine = np.array(both.engine[1:]) + np.median(both.saves, axis=0) / every
    ratios = np.array(both.loop[1:]) / engine
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975], axis=0)
    wall, processor = (
        {"median": float(r), "interval": [float(a), float(b)]}
        for r, a, b in zip(np.median(ratios, axis=0), low, high, strict=True)
    )
    return {
        "ratio": wall,
        "ratio of processor time": processor if device.type == "cpu" else None,
        "images_per_second": {
            "engine": batch / float(np.median(engine, axis=0)[0]),
            "bare": batch / float(np.median(both.loop[1:], axis=0)[0]),
        },
        "checkpoint_seconds": float(np.median(both.saves, axis=0)[0]),
        "checkpoint_every": every,
        "blocks": blocks,
        "steps_per_block": steps,
        "batch": batch,
        "size_px": size_px,
        "parameters": sum(p.numel() for p in build(size_px).parameters()),
        "dtype": str(dtype),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("blocks", 12), ("steps", 8), ("batch", 32), ("size-px", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args()
    result = measure(blocks=given.blocks, steps=given.steps, batch=given.batch, size_px=given.size_px)
    if given.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
