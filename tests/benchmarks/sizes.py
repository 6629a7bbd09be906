"""How much the suite `train` measures: networks, images, and how many blocks of each contender."""

from dataclasses import dataclass

import torch
from problem import Problem, make_problem

from cellbridge.config import NetworkConfig

SMALL = NetworkConfig(widths=(32, 64, 64), attention_levels=(2,))
MEDIUM = NetworkConfig(widths=(64, 128, 256, 256), layers_per_block=2, attention_levels=(3,))
LARGE = NetworkConfig(widths=(128, 256, 384, 512), layers_per_block=2, attention_levels=(3,))
TINY = NetworkConfig(widths=(8, 8), attention_levels=())


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Parameters
    ----------
    networks : the small and the medium one, and those of the part `device`.
    size_px, batch, small_batch : images, and the batch for the parts `step` and the others.
    block : steps of a block of the small network; the medium one takes blocks of one step.
    blocks, medium_blocks, flag_blocks : blocks of each contender: small network, medium network, and each flag.
    compile : strategies of compilation to try; each takes a minute or more before its first step.
    checkpoint_every : steps between checkpoints in the part `step`.
    seeds, seed_steps : trainings that are compared by their held-out loss.
    cells, held_out : cells to train on and to judge by.
    resumes : how often resuming is timed.
    device_px, device_batches, device_steps : the part `device`.
    """

    small: NetworkConfig = SMALL
    medium: NetworkConfig = MEDIUM
    on_device: tuple[NetworkConfig, ...] = (MEDIUM, LARGE)
    size_px: int = 32
    batch: int = 32
    small_batch: int = 8
    block: int = 4
    blocks: int = 60
    medium_blocks: int = 12
    flag_blocks: int = 4
    compile: tuple[str, ...] = ("regional", "default")
    checkpoint_every: int = 50
    seeds: int = 3
    seed_steps: int = 150
    cells: int = 1024
    held_out: int = 256
    resumes: int = 12
    device_px: int = 64
    device_batches: tuple[int, ...] = (256, 128)
    device_steps: int = 40

    def problem(self, network: NetworkConfig, *, batch: int, device: torch.device) -> Problem:
        return make_problem(
            network, size_px=self.size_px, batch=batch, cells=self.cells, held_out=self.held_out, device=device
        )


FULL = Size()
QUICK = Size(
    batch=8, block=2, blocks=12, medium_blocks=4, flag_blocks=2,
    compile=(), checkpoint_every=10, seeds=2, seed_steps=20,
    cells=256, held_out=64, resumes=4, device_steps=10,
)  # fmt: skip
SMALLEST = Size(
    small=TINY, medium=TINY, on_device=(TINY,), size_px=8, batch=4, small_batch=4, block=2, blocks=4, medium_blocks=2,
    flag_blocks=2,
    compile=(), checkpoint_every=9, seeds=2, seed_steps=4, cells=24, held_out=8, resumes=2, device_px=8,
    device_batches=(4,), device_steps=2,
)  # fmt: skip
"""For the tests of the suite itself: its numbers mean nothing."""
