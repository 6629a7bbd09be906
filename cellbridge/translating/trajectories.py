"""The ways of some cells: frames as a store beside the translation, a moving picture and a strip.

The store has a row per (target, source cell, frame), which says in `Metadata_Frame` which frame it is, from 0 (the source cell), and in
`Metadata_BridgeTime` when: from 0 at the source to 1 at the target, on a way over two legs 0.5 at the control. What a frame shows is the
method's: over a bridge the state of the process, noise and all; over noise what the model takes the cell for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cellbridge import processes
from cellbridge.conditions import Condition
from cellbridge.data.balance import draw_evenly
from cellbridge.data.store import Store, open_store
from cellbridge.plots.composite import contrast_limits
from cellbridge.plots.trajectory import Way, moving, strip
from cellbridge.runs import publish_file
from cellbridge.runtime import autocast
from cellbridge.translating.cells import Draws, Machine, Rows, batch_of, drawn
from cellbridge.translating.output import Making, rows_of, write_beside_source
from cellbridge.translating.places import pictures, trajectories
from cellbridge.translators.translator import TracedTranslator

_SECONDS_A_FRAME, _SECONDS_AT_AN_END = 0.25, 1.0
_CONTRAST_CELLS = 256


@dataclass(frozen=True)
class Followed:
    """Frames of some cells to one target: times (frame,), and counts (cell, frame, channel, y, x)."""

    target: Condition
    times: tuple[float, ...]
    counts: Tensor


def write_trajectories(
    out: Path,
    store: Store,
    rows: Rows,
    translator: TracedTranslator,
    making: Making,
    *,
    machine: Machine,
    n: int,
    frames: int,
    attributes: dict[str, Any],
    overwrite: bool,
) -> None:
    """Follow some of the cells to every target but their own condition, and write frames and pictures; all processes share the work.

    Parameters
    ----------
    out : the translation's store, beside which they go.
    rows : the cells that were translated; n of them, drawn evenly over plates, are shown.
    """
    some = draw_evenly(rows, store.plates[rows], n=n, seed=machine.seed)
    targets = [target for target in making.targets if target != making.source]
    ways = [_follow(store, some, translator, target, machine, frames=frames) for target in targets]
    if not processes.is_main():
        return
    place = trajectories(out)
    gif, png = pictures(out)
    write_beside_source(
        place,
        store,
        np.concatenate([np.repeat(some, len(way.times)) for way in ways]),
        obs=pd.concat([_table(store, some, making, way) for way in ways], ignore_index=True),
        counts=np.concatenate([way.counts.flatten(0, 1).numpy() for way in ways]),
        x_T=None,
        attributes=attributes | {"trajectories": {"cells": len(some), "pictures": [gif.name, png.name]}},
        overwrite=overwrite,
    )
    drawn_ways = ways_of(open_store(place))
    limits = contrast_limits(store.images(draw_evenly(rows, store.plates[rows], n=_CONTRAST_CELLS, seed=0)))
    shown: dict[str, Any] = {"channels": store.info.channels, "limits": limits, "pixel_um": store.info.pixel_um}
    _save_moving(gif, moving(drawn_ways, **shown))
    figure = strip(drawn_ways, titles=list(store.obs.index[some].astype(str)), **shown).get_figure(root=True)
    assert figure is not None
    with publish_file(png) as file:
        figure.savefig(file, format="png", dpi=170, bbox_inches="tight", pad_inches=0.06)


def ways_of(frames: Store) -> dict[str, Way]:
    """Return what a store of frames shows, target by target: cells and frames in the order of its rows."""
    found = {}
    rows = np.arange(len(frames.obs))
    for target, part in frames.obs.assign(row=rows).groupby("Metadata_TargetCondition", sort=False):
        cells = part["Metadata_SourceCell"].nunique()
        times = part["Metadata_BridgeTime"].astype(float).to_numpy().reshape(cells, -1)[0]
        images = frames.images(part["row"].to_numpy())
        found[str(target)] = Way(times.tolist(), images.reshape(cells, len(times), *images.shape[1:]))
    return found


def _follow(
    store: Store, rows: Rows, translator: TracedTranslator, target: Condition, machine: Machine, *, frames: int
) -> Followed:
    times: tuple[float, ...] = ()

    def work(part: Draws) -> tuple[Tensor, ...]:
        with torch.inference_mode(), autocast(machine.device, machine.dtype):
            batch = batch_of(store, part, machine)
            found = translator.trace(batch, target=target, frames=frames)
        images = torch.stack([frame.float().cpu() for frame in found.frames], dim=1)
        plates = [plate for plate in batch.plates for _ in found.times]
        counts, _ = store.intensity.to_counts(images.flatten(0, 1), plates)
        kept = torch.uint8 if store.info.full_scale <= 255 else torch.uint16
        return counts.to(kept).view(images.shape), torch.tensor(found.times, dtype=torch.float64)

    counts = []
    for of_batch, at in processes.in_order(drawn(rows, 1).batches(machine.batch_size), work):
        counts.append(of_batch)
        times = tuple(at.tolist())
    return Followed(target, times, torch.cat(counts) if counts else torch.empty(0))


def _table(store: Store, rows: Rows, making: Making, way: Followed) -> pd.DataFrame:
    """Return a row per cell and frame, all frames of the first cell first."""
    count = len(way.times)
    table = rows_of(store, drawn(rows, 1), making, way.target)
    table = table.loc[np.repeat(table.index, count)].reset_index(drop=True)
    table["Metadata_Frame"] = [str(frame) for frame in range(count)] * len(rows)
    table["Metadata_BridgeTime"] = [f"{time:.6f}" for time in way.times] * len(rows)
    table["Metadata_Cell"] = table["Metadata_Cell"] + "/frame " + table["Metadata_Frame"]
    table["Metadata_Origin"] = "trajectory"
    return table


def _save_moving(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write an animation that runs for ever, and rests at both ends."""
    from PIL import Image

    images = [Image.fromarray(frame).quantize(256) for frame in frames]
    ends = {0, len(images) - 1}
    seconds = [_SECONDS_AT_AN_END if i in ends else _SECONDS_A_FRAME for i in range(len(images))]
    with publish_file(path) as file:
        images[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=[round(1000 * each) for each in seconds],
            loop=0,
        )
