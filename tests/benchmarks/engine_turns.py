"""The engine as users run it, with events, TensorBoard, average, augmentation and checkpoints, taking turns with a rival's steps.

The engine drives: after a block of its steps, which ends with a log step, the rival runs its own while the engine's clock stands
still. In the order E R R E E R R E …, so that every block of the one has one of the other beside it.
"""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import Ratio, Step, Times, bootstrap, now, paired_ratio, timed
from problem import Problem

from cellbridge.config import TrainingConfig
from cellbridge.diffusion.fitting import denoising_loss
from cellbridge.errors import ResourceError
from cellbridge.runs import RunDir
from cellbridge.training.events import Event, Logged, Saved, Started, show
from cellbridge.training.loop import fit

_ENDLESS = 1_000_000
WARM_UP = 2
"""Blocks of each that are not counted."""


class EnoughError(Exception):
    """All blocks are measured."""


@dataclass
class Duel:
    """What was measured: (block, 2) wall and processor seconds per step, block i of one beside block i of the other.

    Parameters
    ----------
    disturbed : (block,), whether a checkpoint was being written while the engine's block ran.
    first_block : seconds of the engine's first block, with everything that is done once.
    steps : engine steps of each block.
    logged : what the engine said of itself at the end of each block.
    """

    engine: Times
    rival: Times
    disturbed: np.ndarray
    steps: np.ndarray
    first_block: float
    logged: list[dict[str, float]]

    @property
    def checkpoint_seconds(self) -> np.ndarray:
        """What each checkpoint added to its block: (checkpoint, 2), wall and processor seconds."""
        usual = np.median(self.engine[~self.disturbed], axis=0)
        return (self.engine - usual)[self.disturbed] * self.steps[self.disturbed, None]

    def ratio(self, *, checkpoint_every: int, clock: int = 0) -> Ratio:
        """Return how many times as fast the engine is, the cost of its checkpoints spread over the steps between two."""
        kept = ~self.disturbed
        if not kept.any():
            raise ResourceError(
                "every block of steps had a checkpoint being written beside it: the disk is too slow for so many. "
                "Point TMPDIR at a faster one."
            )
        saving = np.maximum(0.0, np.median(self.checkpoint_seconds, axis=0)) if self.disturbed.any() else 0.0
        return paired_ratio(self.rival[kept], self.engine[kept] + saving / checkpoint_every, clock=clock)

    def told(self, name: str) -> tuple[float, tuple[float, float]]:
        """Return the mean of a value that the engine logged, with its interval over log steps."""
        values = np.array([entry[name] for entry in self.logged])
        return float(values.mean()), bootstrap(values, np.mean)

    def images_per_second(self, batch: int) -> dict[str, float]:
        usual = np.median(self.engine[~self.disturbed], axis=0), np.median(self.rival[~self.disturbed], axis=0)
        return {name: float(batch / seconds[0]) for name, seconds in zip(("engine", "rival"), usual, strict=True)}


@dataclass
class Turns:
    """The engine's events, with the rival's steps between them.

    Parameters
    ----------
    events : of `fit`, which logs every `steps` steps.
    steps, blocks : steps of a block, and how many blocks of each are counted.
    checkpoint_every : as the engine's; a block goes on until the checkpoint that began in it is published.
    synchronize : waits for the device.
    """

    events: Generator[Event, None, None]
    rival: Step
    steps: int
    blocks: int
    checkpoint_every: int
    synchronize: Step | None = None
    _engine: list[Times] = field(default_factory=list)
    _rival: list[Times] = field(default_factory=list)
    _spans: list[tuple[int, int]] = field(default_factory=list)
    _logged: list[dict[str, float]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Event]:
        begun, saved, mark, spent = 0, 0, now(), np.zeros(2)
        try:
            for event in self.events:
                if self.synchronize is not None and isinstance(event, Logged):
                    self.synchronize()
                spent += now() - mark
                if isinstance(event, Started):
                    begun, spent = event.step, np.zeros(2)
                elif isinstance(event, Saved):
                    saved = event.step
                elif isinstance(event, Logged) and saved >= self._due_before(event.step):
                    self._close(begun, event, spent)
                    begun, spent = event.step, np.zeros(2)
                mark = now()  # what the reader of the events does counts, too
                yield event
        finally:
            self.events.close()

    def duel(self) -> Duel:
        """Return what was measured."""
        spans = np.array(self._spans)
        disturbed = np.array([self._due_before(end) >= max(1, begun) for begun, end in self._spans])
        counted = slice(WARM_UP, WARM_UP + self.blocks)
        return Duel(
            engine=np.array(self._engine)[counted],
            rival=np.array(self._rival)[counted],
            disturbed=disturbed[counted],
            steps=(spans[:, 1] - spans[:, 0])[counted],
            first_block=float(self._engine[0][0] * (spans[0, 1] - spans[0, 0])),
            logged=self._logged[counted],
        )

    def _due_before(self, step: int) -> int:
        """Return the last checkpoint step before a step, 0 where there is none; at the step itself, saving follows logging."""
        return (step - 1) // self.checkpoint_every * self.checkpoint_every

    def _close(self, begun: int, event: Logged, spent: Times) -> None:
        self._engine.append(spent / (event.step - begun))
        self._spans.append((begun, event.step))
        self._logged.append(event.values)
        while len(self._rival) < 2 * ((len(self._engine) + 1) // 2):
            self._rival.append(timed(self.rival, steps=self.steps, synchronize=self.synchronize))
        if len(self._engine) >= WARM_UP + self.blocks:
            raise EnoughError


def duel(
    problem: Problem,
    rival: Step,
    *,
    blocks: int,
    steps: int,
    flags: dict[str, Any],
    checkpoint_every: int = _ENDLESS,
) -> Duel:
    """Run the engine on a problem with its defaults but for `flags`, against a rival's steps."""
    config = TrainingConfig(
        **{**flags, "steps": _ENDLESS, "batch_size": problem.batch, "log_every": steps},
        checkpoint_every=checkpoint_every,
    )
    cuda = problem.device.type == "cuda"
    with run_directory() as run:
        turns = Turns(
            engine(problem, config, run),
            rival,
            steps=steps,
            blocks=blocks,
            checkpoint_every=checkpoint_every,
            synchronize=(lambda: torch.cuda.synchronize(problem.device)) if cuda else None,
        )
        try:
            show(
                iter(turns),
                run=run,
                description="engine",
                total=(WARM_UP + blocks) * steps,
                images_per_step=problem.batch,
            )
        except EnoughError:
            return turns.duel()
    raise AssertionError("the engine ended before its blocks were measured")


def engine(problem: Problem, config: TrainingConfig, run: RunDir, *, seed: int = 0) -> Generator[Event, None, None]:
    """Return the engine's events on a problem."""
    return fit(
        problem.build(seed),
        denoising_loss(problem.schedule, "v"),
        problem.batches(seed),
        config=config,
        run=run,
        identity={},
        device=problem.device,
    )


@contextmanager
def run_directory() -> Iterator[RunDir]:
    """Yield a run directory that goes away with the block."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        yield RunDir(Path(directory))
