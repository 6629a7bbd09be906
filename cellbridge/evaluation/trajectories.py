"""The ways of some cells to each target, as `translate` kept them: how far and how straight they run, and their pictures for the report."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.store import Store
from cellbridge.evaluation.arms import Sights, blocks_of_rows
from cellbridge.evaluation.sections import Column, Section, table
from cellbridge.evaluation.sight import Sight
from cellbridge.evaluation.target import Draws
from cellbridge.metrics.content import channel_deviation
from cellbridge.metrics.path_length import PathLengths, path_length

_ABOUT = (
    "How far a way leads, how much longer than that it is (detour: 1 is straight), and its perceptual path length, the mean squared speed, which "
    "is the squared distance at least. In the first extractor's features and in pixels, these in standard deviations of each stain. Compare rows "
    "of equally many frames only: noise on the way lengthens it the more, the more frames there are."
)
_COLUMNS = (
    Column("cells", "cells", digits=0),
    Column("frames", "frames", digits=0),
    Column("displacement", "distance, features"),
    Column("detour", "detour, features"),
    Column("energy", "path length, features"),
    Column("pixel_displacement", "distance, pixels"),
    Column("pixel_detour", "detour, pixels"),
    Column("pixel_energy", "path length, pixels", digits=3),
)
_SHOWS = {"bridge": "Frames are states of the process itself, noise and all."}
_ESTIMATES = "Frames of a way over noise are what the model takes the cell for at that time."


def judge_trajectories(sights: Sights, draws: Draws) -> Section | None:
    """Measure the ways of every model that has some; None where none has."""
    if not sights.trajectories:
        return None
    extractor = sights.judges.extractors[0].name
    rows = []
    for model, sight in sights.trajectories.items():
        for target, (places, times) in ways_of(sight.store, model).items():
            seen, in_pixels = _paths(sight, places, extractor)
            settings: dict[str, Any] = {
                "times": times,
                "blocks": blocks_of_rows(sight.store, places[:, 0]),
                **draws.settings,
            }
            row: dict[str, Any] = {"name": f"{model}, {target}", "key": f"model:{model}", "kind": "model"}
            row |= {"cells": len(places), "frames": len(times)} | _columns(path_length(seen, **settings), "")
            rows.append(row | _columns(path_length(in_pixels, **settings), "pixel_"))
    return table("trajectories", "How do cells get there?", _ABOUT, columns=_COLUMNS, rows=rows)


def ways_of(store: Store, model: str) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return, for each target, the rows of a model's frames (cell, frame), in their order, and the times of the frames."""
    obs = store.obs.reset_index(drop=True).assign(row=np.arange(len(store.obs)))
    obs["frame"] = pd.to_numeric(obs["Metadata_Frame"])
    obs["time"] = pd.to_numeric(obs["Metadata_BridgeTime"])
    found = {}
    for target, part in obs[obs["Metadata_Model"] == model].groupby("Metadata_TargetCondition", sort=True):
        places = part.pivot(index="Metadata_SourceCell", columns="frame", values="row").dropna()
        times = part.drop_duplicates("frame").sort_values("frame")["time"].to_numpy(dtype=np.float64)
        found[str(target)] = (places.to_numpy(dtype=np.int64), times)
    return found


def _paths(sight: Sight, places: NDArray[np.int64], extractor: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the frames in features, (cell, frame, feature), and as pixels in which the length of a difference is its root mean square."""
    seen = sight.seen(places.ravel()).features[extractor].numpy().astype(np.float64)
    images = sight.images(places.ravel()).numpy()
    deviation = channel_deviation(images[: len(images) : places.shape[1]])
    scaled = images / np.where(deviation > 0, deviation, 1.0)[:, None, None] / np.sqrt(images[0].size)
    return seen.reshape(*places.shape, -1), scaled.reshape(*places.shape, -1)


def _columns(found: PathLengths, prefix: str) -> dict[str, Any]:
    columns = {name: getattr(found, name) for name in ("displacement", "detour", "energy")}
    return {f"{prefix}{name}": value for name, value in columns.items()}


def save_pictures(stores: Mapping[str, Store], directory: Path) -> list[dict[str, Any]]:
    """Copy what `translate` drew beside each store of frames, and return file, title and caption of each for the report.

    Parameters
    ----------
    stores : model → its frames; the pictures lie beside them under the same name.
    directory : of the evaluation's figures.
    """
    saved = []
    for number, (model, store) in enumerate(stores.items(), start=1):
        times = {target: found for target, (_, found) in ways_of(store, model).items()}
        method = str((store.info.attributes.get("config") or {}).get("method", ""))
        caption = f"{_times(times)} {_SHOWS.get(method, _ESTIMATES)}"
        entry: dict[str, Any] = {"model": model, "title": f"On the way ({model})", "caption": caption}
        for kind, suffix in (("strip", ".png"), ("moving", ".gif")):
            drawn = store.info.path.with_suffix(suffix)
            if drawn.is_file():
                directory.mkdir(parents=True, exist_ok=True)
                name = f"trajectories-{number}{suffix}"
                shutil.copyfile(drawn, directory / name)
                entry[kind] = f"figures/{name}"
        if {"strip", "moving"} & entry.keys():
            saved.append(entry)
    return saved


def _times(of_targets: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> str:
    """Say when the frames are, once where all targets share their times."""
    words = {target: ", ".join(f"{time:.2g}" for time in times) for target, times in of_targets.items()}
    if len(set(words.values())) == 1:
        return f"Time from 0, the cell, to 1, its translation: {next(iter(words.values()))}."
    return "Time from 0, the cell, to 1, its translation: " + "; ".join(f"{k}: {v}" for k, v in words.items()) + "."
