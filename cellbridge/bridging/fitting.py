"""Bridges between images on the training engine: the loss, what held-out cells say, and a grid to look at."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cellbridge.assembly.bridges import BridgeCard
from cellbridge.bridge.image_matching import Bridged, bridged_batches, matching_losses, watched
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridging.cells import BridgeCells
from cellbridge.bridging.judging import HeldOut, without_gain
from cellbridge.config import BridgeFitConfig
from cellbridge.runs import RunDir, begin, fingerprint
from cellbridge.runtime import autocast, pick_precision
from cellbridge.sample_grids import CONDITIONS, evenly, save_grid
from cellbridge.settings import binding, dump
from cellbridge.training.checkpoint import as_resume
from cellbridge.training.ema import applied
from cellbridge.training.events import Event, Finished, Judged, SampleDue, Warned, show
from cellbridge.training.loop import LossOutput, fit

_NOT_BINDING = {"training", "resume", "accept_changes", "device"}
"""Settings that a resumed training may change, or that the engine compares by itself."""
_WITHOUT_EFFECT = ("looks", "judged")
_OF_ROUNDS = ("imf_rounds", "imf_steps", "imf_pairs", "imf_replay", "simulation_steps")
"""Settings of `bridge` that no weights depend on, and those that only the weights of rounds depend on."""

Batches = Callable[[int, int], Bridged]


def fit_bridge(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    *,
    config: BridgeFitConfig,
    run: RunDir,
    inputs: Mapping[str, Path],
    batches: Batches | None = None,
    identity: Mapping[str, str] | None = None,
    facts: Mapping[str, float] | None = None,
) -> tuple[Finished, dict[str, float]]:
    """Train a bridge's network, showing progress, and draw a labelled grid of translated cells at the end.

    Parameters
    ----------
    inputs : what the result depends on, beside the configuration: hashed, and a checkpoint of other inputs is refused.
    batches : other pairs than those of the coupling.
    identity : all that the result depends on; that of `identity_of`, if not given.

    Returns
    -------
    The last event, and what held-out cells said at the end.
    """
    training = config.training
    bound = identity_of(config, inputs) if identity is None else identity
    events = _events(bridge, cells, card, batches, config=config, run=run, identity=bound)
    said: dict[str, float] = {}
    finished = show(
        _judged(events, bridge, cells, said, config=config, warning=without_gain if batches is None else None),
        run=run,
        description="fit-bridge",
        total=training.steps,
        images_per_step=training.batch_size,
        on_start=lambda: begin(run, config=dump(config), seed=training.seed, inputs=inputs),
        on_sample=_drawing(bridge, cells, card, config=config, run=run),
        trackers=training.trackers,
        settings=config.model_dump(mode="json"),
        facts=facts,
    )
    return finished, said


def _events(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    batches: Batches | None,
    *,
    config: BridgeFitConfig,
    run: RunDir,
    identity: Mapping[str, str],
) -> Generator[Event, None, None]:
    """Train on the engine, with samples due as often as held-out cells are to be looked at."""
    training, device = config.training, cells.cells.data.device
    if not training.sample_every:
        training = training.model_copy(update={"sample_every": -(-training.steps // config.bridge.looks)})
    return fit(
        bridge.to(device).network,
        bridge_loss(bridge),
        batches or _batches(cells, card, config),
        config=training,
        run=run,
        identity=identity,
        device=device,
        resume=as_resume(config.resume),
        accept_changes=config.accept_changes,
    )


def bridge_loss(bridge: ImageBridge) -> Callable[[nn.Module, Bridged], LossOutput]:
    """Return the loss as the engine calls it, with what to watch."""

    def loss(network: nn.Module, bridged: Bridged) -> LossOutput:
        losses = matching_losses(bridge, bridged.pairs, bridged.draw, network=network)
        return LossOutput((bridged.pairs.weights * losses).mean(), watched(losses.detach(), bridged))

    return loss


def identity_of(config: BridgeFitConfig, inputs: Mapping[str, Path], *, of_round: bool = False) -> dict[str, str]:
    """Return everything that the weights depend on beside the training's own settings, as name → hash or value.

    Parameters
    ----------
    inputs : hashed.
    of_round : of a round of Markovian fitting, whose own settings count, too.
    """
    defaults = type(config.bridge)()
    free = (*_WITHOUT_EFFECT, "imf_rounds") if of_round else (*_WITHOUT_EFFECT, *_OF_ROUNDS)
    settled = config.bridge.model_copy(update={name: getattr(defaults, name) for name in free})
    bound = config.model_copy(update={"bridge": settled})
    return {name: fingerprint(path) for name, path in inputs.items()} | binding(bound, exclude={*inputs, *_NOT_BINDING})


def _batches(cells: BridgeCells, card: BridgeCard, config: BridgeFitConfig) -> Batches:
    def figures(step: int) -> dict[str, float]:
        return cells.coupled.figures(step * config.training.batch_size // cells.train.count)

    return bridged_batches(
        cells.train,
        reg=card.reg,
        seed=config.training.seed,
        accumulation=config.training.accumulation,
        figures=figures,
    )


def _judged(
    events: Generator[Event, None, None],
    bridge: ImageBridge,
    cells: BridgeCells,
    said: dict[str, float],
    *,
    config: BridgeFitConfig,
    warning: Callable[[Mapping[str, float]], str | None] | None,
) -> Iterator[Event]:
    """Look at held-out cells where samples are due and at the end.

    Parameters
    ----------
    said : told what was found.
    warning : what is wrong with what they say at the end, or None.
    """
    judge = HeldOut(bridge, cells.cells, cells.judge, cells.judged, config=config)
    try:
        for event in events:
            if isinstance(event, SampleDue | Finished):
                said.clear()  # what is no number any more is not told at its earlier value
                with averaged(bridge, event.ema, config, cells.cells.data.device):
                    said.update(judge.look())
                yield Judged(event.step, dict(said))
            if isinstance(event, Finished) and warning is not None and (text := warning(said)) is not None:
                yield Warned(event.step, text)
            yield event
    finally:
        events.close()


def _drawing(
    bridge: ImageBridge, cells: BridgeCells, card: BridgeCard, *, config: BridgeFitConfig, run: RunDir
) -> Callable[[int, dict[str, Tensor]], None]:
    """Return what draws a grid of a few control cells, the same translated to each condition, and real cells of it."""

    def draw_samples(step: int, ema: Mapping[str, Tensor]) -> None:
        with averaged(bridge, ema, config, cells.cells.data.device):
            shown = _grid(bridge, cells, card, config)
        save_grid(shown, card.channels, run.samples / f"step-{step:08d}.png")

    return draw_samples


def _grid(bridge: ImageBridge, cells: BridgeCells, card: BridgeCard, config: BridgeFitConfig) -> dict[str, Tensor]:
    data, names, reg = cells.cells.data, cells.cells.names, math.sqrt(card.reg[0] * card.reg[1])
    source = data.batch(torch.from_numpy(evenly(names, card.control)))
    seeds = torch.arange(len(source), device=data.device)
    rows = {card.control: source}
    for number, name in enumerate(card.conditions[:CONDITIONS]):
        rows[f"to {name}"] = simulate(
            ImageEndpoint(bridge, condition=number, reg=reg),
            source,
            reg=reg,
            chances=row_chances(seeds, data.image_shape),
            grid=times(config.bridge.simulation_steps),
            step="mean",
        )
        rows[f"real {name}"] = data.batch(torch.from_numpy(evenly(names, name)))
    return rows


@contextmanager
def averaged(
    bridge: ImageBridge, ema: Mapping[str, Tensor], config: BridgeFitConfig, device: torch.device
) -> Iterator[None]:
    """Let a bridge have averaged weights and the training's precision inside the block, without gradients."""
    precision = pick_precision(config.training.precision, device)
    with torch.no_grad(), applied(bridge.network, ema), autocast(device, precision):
        yield
