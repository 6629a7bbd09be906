"""What every contender trains: a network, synthetic cells in memory, and the loss on cells held out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cellbridge.config import NetworkConfig
from cellbridge.data import synthetic
from cellbridge.data.anatomy import CHANNELS
from cellbridge.data.dataset import BatchSource, CellData
from cellbridge.data.intensity import fit_intensity
from cellbridge.diffusion.fitting import Noised, noised_batches
from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.diffusion.schedule import Schedule, make_schedule
from cellbridge.networks.unet import build_unet
from cellbridge.runtime import generator

STEPS_T = 1000
_CONDITIONS = 3
_CONTROL_ROW = 1
_FIELD_PX = 320
_HELD_OUT_BATCH = 64


@dataclass(frozen=True)
class Draw:
    """Clean images, and the chance of their training step."""

    x_0: Tensor
    t: Tensor
    epsilon: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Problem:
    """A network's shape, the batch of one optimiser step, and the cells to train on and to judge by."""

    network: NetworkConfig
    batch: int
    cells: CellData
    held_out: Tensor
    schedule: Schedule

    @property
    def device(self) -> torch.device:
        return self.cells.device

    def build(self, seed: int = 0) -> nn.Module:
        """Return the network with weights by the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = build_unet(
                self.network, channels=len(CHANNELS), size_px=self.cells.image_shape[-1], conditions=_CONDITIONS
            )
        return network.to(self.device)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.build().parameters())

    @property
    def name(self) -> str:
        """Its size in words, for a table."""
        return f"{self.parameters / 1e6:.3g} M, {self.cells.image_shape[-1]} px, batch {self.batch}"

    def batches(self, seed: int = 0):  # type: ignore[no-untyped-def]
        """Return what the engine trains on: 16-bit counts, dequantised and turned, with noise by (seed, step)."""
        source = BatchSource(self.cells, batch_size=self.batch, seed=seed)
        return noised_batches(source, steps=STEPS_T, seed=seed, condition_dropout=0.1, device=self.device)

    def as_the_engine(self, seed: int = 0) -> Iterator[Draw]:
        """Yield the very batches that the engine sees with this seed."""
        batches, step = self.batches(seed), 0
        while True:
            noised: Noised = batches(step, 0)
            yield Draw(noised.batch.images, noised.draw.t, noised.draw.epsilon, noised.draw.labels)
            step += 1

    def in_memory(self) -> Iterator[Draw]:
        """Yield random batches of float images that are ready in memory: the least that a step can be given."""
        images = self.cells.batch(torch.arange(len(self.cells)))
        while True:
            rows = torch.randint(len(images), (self.batch,), device=self.device)
            x_0, t = images[rows], torch.randint(STEPS_T, (self.batch,), device=self.device)
            yield Draw(x_0, t, torch.randn_like(x_0), self.cells.labels[rows])

    @torch.no_grad()
    def held_out_loss(self, network: nn.Module) -> float:
        """Return the mean loss on the held-out cells in float32, at times and with noise that are the same for every network."""
        network.eval()
        total, count = 0.0, len(self.held_out)
        chance = generator("cpu", "held-out noise", 0)
        epsilon = torch.randn(self.held_out.shape, generator=chance).to(self.device)
        t = (torch.arange(count, device=self.device) + 0.5) * STEPS_T / count - 1
        for part in torch.arange(count, device=self.device).split(_HELD_OUT_BATCH):
            labels = torch.full((len(part),), _CONTROL_ROW, device=self.device)
            x_0 = self.held_out[part]
            loss = diffusion_loss(
                network, x_0, labels, schedule=self.schedule, prediction="v", t=t[part], epsilon=epsilon[part]
            )
            total += float(loss.per_image.double().sum())
        return total / count


def make_problem(
    network: NetworkConfig, *, size_px: int, batch: int, cells: int, held_out: int, device: torch.device
) -> Problem:
    """Render cells, of which the last `held_out` are not trained on, and hold them in memory as 16-bit counts."""
    counts = render(cells + held_out, size_px=size_px)
    intensity = fit_intensity({"P1": counts[:cells]}, channels=CHANNELS, full_scale=synthetic.FULL_SCALE)
    labels = torch.full((len(counts),), _CONTROL_ROW)
    data = CellData(counts, plates=["P1"] * len(counts), intensity=intensity, labels=labels, device=device)
    judged = data.batch(torch.arange(cells, cells + held_out))
    trained = CellData(counts[:cells], plates=["P1"] * cells, intensity=intensity, labels=labels[:cells], device=device)
    return Problem(network, batch, trained, judged, make_schedule("cosine", STEPS_T).to(device))


def render(number: int, *, size_px: int) -> np.ndarray:
    """Return crops of synthetic control cells, (cell, channel, size_px, size_px), the same at every call."""
    plate = synthetic.draw_plate("P1", synthetic.generator("benchmark plate"))
    crops: list[np.ndarray] = []
    field = 0
    while len(crops) < number:
        cells = synthetic.draw_cells(synthetic.generator("benchmark cells", field), number=80, field_px=_FIELD_PX)
        noise = synthetic.generator("benchmark noise", field)
        image = synthetic.render_field(cells, plate, field_px=_FIELD_PX, noise=noise)
        for x, y in zip(cells.x, cells.y, strict=True):
            left, top = (int(np.clip(at - size_px / 2, 0, _FIELD_PX - size_px)) for at in (x, y))
            crops.append(image[:, top : top + size_px, left : left + size_px])
        field += 1
    return np.stack(crops[:number])
