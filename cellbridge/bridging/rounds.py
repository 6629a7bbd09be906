"""Iterative Markovian fitting of a bridge between images, in rounds that held-out cells can refuse.

A round simulates pairs from the averaged weights, trains on them and on some pairs of the coupling, and is kept if it brings the translations of
cells that were held out nearer to real ones, both directions together, by more than a standard error. What an under-trained network
simulates can undo what it knew: else the weights before the round are taken back.

A round lies under the hash of all that it begins with, the weights above all. Where these are others, since the training before it went on or
a setting of the rounds was changed, it is another round.

References
----------
Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, algorithm 1.
De Bortoli et al. 2024, "Schrödinger bridge flow for unpaired data translation", arXiv:2409.09347 (one network for both directions).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cellbridge.assembly.bridges import BridgeCard
from cellbridge.bridge.images import ImageBridge
from cellbridge.bridging.approach import Arrival, approach
from cellbridge.bridging.cells import BridgeCells
from cellbridge.bridging.fitting import averaged, fit_bridge, identity_of
from cellbridge.bridging.judging import HeldOut
from cellbridge.bridging.replay import PAIRS, mixed_batches, require_going_on, simulated_pairs
from cellbridge.config import BridgeFitConfig
from cellbridge.runs import RunDir, write_json
from cellbridge.runtime import derive_seed
from cellbridge.training import ema as averaging
from cellbridge.training.checkpoint import binding_settings
from cellbridge.training.events import Finished
from cellbridge.training.signals import stop_requests

_DRAWS = 2
"""Translations of each held-out cell, at least, by which a round is judged."""


def refine(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    ema: Mapping[str, Tensor],
    said: dict[str, float],
    *,
    config: BridgeFitConfig,
    run: RunDir,
    inputs: Mapping[str, Path],
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Take the rounds that are asked for, each in a run directory of its own under `rounds/`; the same call continues them.

    Parameters
    ----------
    ema : averaged weights to begin with.
    said : what held-out cells said of them; replaced by what they say of the weights that are returned.

    Returns
    -------
    The averaged weights to publish, and what was found and decided in each round.

    Raises
    ------
    StoppedBySignal : SIGINT, SIGTERM or SIGHUP came.
    """
    best, rounds = dict(ema), list[dict[str, Any]]()
    if not config.bridge.imf_rounds:
        return best, rounds
    before = _arrivals(bridge, cells, best, config)
    for number in range(1, config.bridge.imf_rounds + 1):
        finished, found, place = _fit_round(
            bridge, cells, card, best, config=config, number=number, run=run, inputs=inputs
        )
        after = _arrivals(bridge, cells, finished.ema, config)
        rounds.append({"round": number, "run": place.path.name, **_decision(before, after)})
        write_json(place.metrics, rounds[-1])
        if not rounds[-1]["kept"]:  # the next round would begin where this one did, with other chance
            break
        best, before = dict(finished.ema), after
        said.clear()
        said.update(found)
    return best, rounds


def _fit_round(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    ema: Mapping[str, Tensor],
    *,
    config: BridgeFitConfig,
    number: int,
    run: RunDir,
    inputs: Mapping[str, Path],
) -> tuple[Finished, dict[str, float], RunDir]:
    """Simulate the pairs of a round and train on them, or continue where that was stopped."""
    origin = _origin(ema, config, inputs, number)
    place = RunDir(run.path / "rounds" / f"round-{number}-{origin[:12]}")
    folder = place.path / "pairs"
    write_json(place.path / "origin.json", {"round": number, "origin": origin, "weights": averaging.digest(ema)})
    averaging.load(bridge.network, ema)
    pairs = simulated_pairs(bridge, cells, card, ema, config=config, folder=folder, number=number)
    own = _round_config(config, number)
    finished, found = fit_bridge(
        bridge,
        cells,
        card,
        config=own,
        run=place,
        inputs={**inputs, "pairs": folder / PAIRS},
        batches=mixed_batches(pairs, cells, card, own),
        identity=identity_of(own, {**inputs, "pairs": folder / PAIRS}, of_round=True) | {"origin": origin},
    )
    return finished, found, place


def _origin(ema: Mapping[str, Tensor], config: BridgeFitConfig, inputs: Mapping[str, Path], number: int) -> str:
    """Return the hash of everything that a round depends on: the weights it begins with, its inputs and its settings."""
    told = {
        "round": str(number),
        "weights": averaging.digest(ema),
        "training": json.dumps(binding_settings(config.training), sort_keys=True),
        **identity_of(config, inputs, of_round=True),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _round_config(config: BridgeFitConfig, number: int) -> BridgeFitConfig:
    """Return the configuration of a round: fewer steps, a third of the learning rate, chance of its own."""
    training = config.training.model_copy(
        update={
            "steps": config.bridge.imf_steps,
            "learning_rate": config.training.learning_rate / 3,
            "seed": derive_seed("round", config.training.seed, number),
        }
    )
    resume = "auto" if config.resume not in ("auto", "never") else config.resume
    return config.model_copy(update={"training": training, "resume": resume})


def _arrivals(
    bridge: ImageBridge, cells: BridgeCells, ema: Mapping[str, Tensor], config: BridgeFitConfig
) -> list[Arrival]:
    judge = HeldOut(bridge, cells.cells, cells.judge, None, config=config)
    with averaged(bridge, ema, config, cells.cells.data.device), stop_requests() as request:
        found = judge.arrivals(draws=_DRAWS)
    require_going_on(request)
    return found


def _decision(before: list[Arrival], after: list[Arrival]) -> dict[str, Any]:
    """Return whether a round is kept, and by which figures; one that is not a number is None."""
    found = approach(before, after)
    figures = {
        "distance_before": _mean(before),
        "distance_after": _mean(after),
        "nearer": found.gain,
        "standard_error": found.error,
    }
    told = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return {"kept": found.is_sure, **told}


def _mean(arrivals: list[Arrival]) -> float:
    return sum(arrival.distance for arrival in arrivals) / len(arrivals) if arrivals else math.nan
