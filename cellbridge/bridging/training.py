"""Bridges between images on the training engine: pairs in memory, their moments, the loss, what held-out cells say, and a grid to look at."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cellbridge.assembly.bridges import BridgeCard
from cellbridge.bridge.image_matching import Bridged, bridged_batches, matching_losses, watched
from cellbridge.bridge.image_moments import Views, joined, leading_modes, mean_images, pair_moments
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridge.linear_guess import Moments
from cellbridge.bridging.coupling import ELEMENTS, CoupledRows, Labelled, Rows, coupled_rows, held_out, require_enough
from cellbridge.bridging.judging import PAIRS_JUDGED, HeldOut
from cellbridge.config import BridgeFitConfig
from cellbridge.data import augment
from cellbridge.data.dataset import CellData
from cellbridge.data.pairs import PairSource
from cellbridge.data.store import Store
from cellbridge.errors import CouplingError
from cellbridge.plots.composite import contrast_limits
from cellbridge.plots.montage import montage
from cellbridge.runs import RunDir, begin, fingerprint, publish_file
from cellbridge.runtime import autocast, pick_precision
from cellbridge.settings import binding, dump
from cellbridge.training.checkpoint import as_resume
from cellbridge.training.ema import applied
from cellbridge.training.events import Event, Finished, Judged, SampleDue, show
from cellbridge.training.loop import LossOutput, fit

_NOT_BINDING = {"training", "resume", "accept_changes", "device"}
"""Settings that a resumed training may change, or that the engine compares by itself."""
_FREE = ("looks", "judged", "imf_rounds", "imf_steps", "imf_pairs", "imf_replay", "simulation_steps")
"""Settings of `bridge` that the weights of the training do not depend on."""

_PAIRS_FOR_MOMENTS = 1024
_IMAGES_FOR_MODES = 4096
_PAIRS_AT_ONCE = 512
_SAMPLES = 6
_SHOWN = 3
"""Conditions in the grid of samples, at most."""


@dataclass(frozen=True)
class BridgeCells:
    """The cells of a bridge in memory.

    Parameters
    ----------
    train : pairs in the order of training.
    coupled : their epochs.
    judge : rows that do not train.
    judged : pairs of these; None where there are none.
    """

    cells: Labelled
    train: PairSource
    coupled: CoupledRows
    judge: Rows
    judged: PairSource | None


def bridge_cells(
    store: Store, rows: Rows, conditions: tuple[str, ...], *, config: BridgeFitConfig, device: torch.device
) -> BridgeCells:
    """Hold the cells of `rows` in memory, keep some to judge by, and couple the others for training.

    Raises
    ------
    CouplingError : control cells and targets share no plate, or hardly any cells.
    NumericalError : a coupling that does not converge.
    """
    names, plates = store.condition_names[rows], store.plates[rows]
    numbers = torch.tensor([conditions.index(name) if name in conditions else -1 for name in names])
    data = CellData.load(store, rows, labels=numbers, device=device)
    cells = Labelled(data, names, plates, store.info.control)
    require_enough(cells, conditions)
    training, bridge = config.training, config.bridge
    train, judge = held_out(cells, bridge.held_out, seed=training.seed)
    coupled = coupled_rows(cells, train, bridge, config.transport, turned=config.augment, seed=training.seed)
    source = PairSource(
        data,
        coupled,
        count=coupled.count,
        batch_size=training.batch_size,
        accumulation=training.accumulation,
        seed=training.seed,
        augment=config.augment,
        align=bridge.align,
    )
    try:
        others = coupled_rows(cells, judge, bridge, config.transport, turned=config.augment, seed=training.seed)
    except CouplingError:  # too few on some plate to couple; the bridge is judged by its translations alone
        return BridgeCells(cells, source, coupled, judge, None)
    judged = PairSource(
        data,
        others,
        count=others.count,
        batch_size=min(others.count, PAIRS_JUDGED),
        seed=training.seed,
        augment=False,
        align=bridge.align,
    )
    return BridgeCells(cells, source, coupled, judge, judged)


def pixel_std(cells: Labelled) -> float:
    """Return the root of the mean over channels of a pixel's variance: what `sigma_rel` is a share of."""
    channels = cells.data.image_shape[0]
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for start in range(0, len(cells.data), _PAIRS_AT_ONCE):
        images = cells.data.batch(torch.arange(start, min(start + _PAIRS_AT_ONCE, len(cells.data)))).double()
        total = total + images.sum((0, 2, 3)).cpu()
        squares = squares + images.square().sum((0, 2, 3)).cpu()
        count += images[:, 0].numel()
    variance = squares / count - (total / count).square()
    return float(variance.mean().sqrt())


def bridge_moments(cells: BridgeCells, conditions: tuple[str, ...], *, config: BridgeFitConfig) -> Moments:
    """Return the second moments of an epoch's pairs, in every orientation that training shows."""
    source, target, turns = (torch.from_numpy(rows) for rows in cells.coupled(0))
    labels = cells.cells.data.labels.cpu()[target]
    views, counts = [], []
    for number in range(len(conditions)):
        chosen = (labels == number).nonzero()[:, 0]
        some = chosen[torch.linspace(0, len(chosen) - 1, min(len(chosen), _PAIRS_FOR_MOMENTS)).long()]
        views.append(_views(cells, source[some], target[some], turns[some], turned=config.augment))
        counts.append(len(target[chosen].unique()))
    kinds = [side for view in views for side in _centred(view, most=_IMAGES_FOR_MODES // (2 * len(views)))]
    modes = leading_modes(torch.cat(kinds), config.bridge.modes, seed=config.training.seed)
    coupled = config.bridge.coupling == "ot" or config.bridge.align
    return joined([pair_moments(view, modes, cells=n, coupled=coupled) for view, n in zip(views, counts, strict=True)])


def _views(cells: BridgeCells, source: Tensor, target: Tensor, turns: Tensor, *, turned: bool) -> Views:
    def views() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(source), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            pair = cells.train.images(source[part], target[part], None, turns=turns[part])
            for element in range(ELEMENTS if turned else 1):
                elements = torch.full((len(pair[0]),), element)
                yield augment.dihedral(pair[0], elements), augment.dihedral(pair[1], elements)

    return views


def _centred(views: Views, *, most: int) -> Iterator[Tensor]:
    """Yield a few sources and a few targets, less the mean of each, in every orientation."""
    means, taken = mean_images(views), 0
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in views():
        room = max(most // ELEMENTS, 1)
        for side, images, mean in zip(sides, pair, means, strict=True):
            side.append(images[:room] - mean)
        taken += min(room, len(pair[0]))
        if taken >= most:
            break
    yield from (torch.cat(side) for side in sides)


def bridge_loss(bridge: ImageBridge) -> Callable[[nn.Module, Bridged], LossOutput]:
    """Return the loss as the engine calls it, with what to watch."""

    def loss(network: nn.Module, bridged: Bridged) -> LossOutput:
        losses = matching_losses(bridge, bridged.pairs, bridged.draw, network=network)
        return LossOutput((bridged.pairs.weights * losses).mean(), watched(losses.detach(), bridged))

    return loss


def fit_bridge(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    *,
    config: BridgeFitConfig,
    run: RunDir,
    inputs: Mapping[str, Path],
    batches: Callable[[int, int], Bridged] | None = None,
    facts: Mapping[str, float] | None = None,
) -> tuple[Finished, dict[str, float]]:
    """Train a bridge's network, showing progress, and draw a labelled grid of translated cells at the end.

    Parameters
    ----------
    inputs : what the result depends on, beside the configuration: hashed, and a checkpoint of other inputs is refused.
    batches : other pairs than those of the coupling.

    Returns
    -------
    The last event, and what held-out cells said at the end.
    """
    training, device = config.training, cells.cells.data.device
    bridge.to(device)
    if not training.sample_every:
        training = training.model_copy(update={"sample_every": -(-training.steps // config.bridge.looks)})
    sums = {name: fingerprint(path) for name, path in inputs.items()}
    events = fit(
        bridge.network,
        bridge_loss(bridge),
        batches or _batches(cells, card, config),
        config=training,
        run=run,
        identity=sums | binding(_bound(config), exclude={*inputs, *_NOT_BINDING}),
        device=device,
        resume=as_resume(config.resume),
        accept_changes=config.accept_changes,
    )
    judge, said = HeldOut(bridge, cells.cells, cells.judge, cells.judged, config=config), {}

    def judging() -> Iterator[Event]:
        try:
            for event in events:
                if isinstance(event, SampleDue | Finished):
                    with averaged(bridge, event.ema, config, device):
                        said.update(judge.look())
                    yield Judged(event.step, dict(said))
                yield event
        finally:
            events.close()

    def draw_samples(step: int, ema: Mapping[str, Tensor]) -> None:
        with averaged(bridge, ema, config, device):
            shown = _grid(bridge, cells, card, config)
        figure = montage(shown, card.channels, contrast_limits(shown[card.control])).get_figure(root=True)
        assert figure is not None
        with publish_file(run.samples / f"step-{step:08d}.png") as temporary:
            figure.savefig(temporary, dpi=150, format="png")

    finished = show(
        judging(),
        run=run,
        description="fit-bridge",
        total=training.steps,
        images_per_step=training.batch_size,
        on_start=lambda: begin(run, config=dump(config), seed=training.seed, inputs=inputs),
        on_sample=draw_samples,
        trackers=training.trackers,
        settings=config.model_dump(mode="json"),
        facts=facts,
    )
    return finished, said


def _bound(config: BridgeFitConfig) -> BridgeFitConfig:
    """Return the configuration with the settings that decide nothing at their defaults."""
    defaults = type(config.bridge)()
    free = {name: getattr(defaults, name) for name in _FREE}
    return config.model_copy(update={"bridge": config.bridge.model_copy(update=free)})


def _batches(cells: BridgeCells, card: BridgeCard, config: BridgeFitConfig) -> Callable[[int, int], Bridged]:
    def figures(step: int) -> dict[str, float]:
        return cells.coupled.figures(step * config.training.batch_size // cells.train.count)

    return bridged_batches(
        cells.train,
        reg=card.reg,
        seed=config.training.seed,
        accumulation=config.training.accumulation,
        figures=figures,
    )


@contextmanager
def averaged(
    bridge: ImageBridge, ema: Mapping[str, Tensor], config: BridgeFitConfig, device: torch.device
) -> Iterator[None]:
    """Let a bridge have averaged weights and the training's precision inside the block, without gradients."""
    precision = pick_precision(config.training.precision, device)
    with torch.no_grad(), applied(bridge.network, ema), autocast(device, precision):
        yield


def _grid(bridge: ImageBridge, cells: BridgeCells, card: BridgeCard, config: BridgeFitConfig) -> dict[str, np.ndarray]:
    """Return a few control cells, the same translated to each condition, and real cells of it, by the names of their rows."""
    data, reg = cells.cells.data, math.sqrt(card.reg[0] * card.reg[1])
    source = data.batch(torch.from_numpy(_some(cells, card.control)))
    seeds = torch.arange(len(source), device=data.device)
    rows = {card.control: source}
    for number, name in enumerate(card.conditions[:_SHOWN]):
        rows[f"to {name}"] = simulate(
            ImageEndpoint(bridge, condition=number, reg=reg),
            source,
            reg=reg,
            chances=row_chances(seeds, data.image_shape),
            grid=times(config.bridge.simulation_steps),
            step="mean",
        )
        rows[f"real {name}"] = data.batch(torch.from_numpy(_some(cells, name)))
    return {name: images.float().clamp(-1, 1).cpu().numpy() for name, images in rows.items()}


def _some(cells: BridgeCells, name: str) -> Rows:
    """Return rows of cells of a condition, evenly over all: they lie plate by plate."""
    at = np.flatnonzero(cells.cells.names == name)
    return at[np.linspace(0, len(at) - 1, min(len(at), _SAMPLES)).astype(np.int64)]
