"""Bridges between vectors on disk: arrays in, a model directory out, and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cellbridge.bridge.drift import EndpointDrift
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.potential import PotentialPreconditioning
from cellbridge.errors import CouplingError, ModelError, in_one_line
from cellbridge.networks.perceptron import BridgePerceptron
from cellbridge.runs import MANIFEST, RunDir, publish_file, publish_model, require_intact
from cellbridge.vectors import Scaling, VectorBridge, Vectors, empty_model

KIND = "vector bridge"
_WEIGHTS, _CARD = "bridge.safetensors", "bridge.json"
_OF_SCALING = ("source_mean", "target_mean", "varies")


def read_vectors(path: Path) -> Vectors:
    """Read an array from a .npy file; objects (pickles) are refused.

    Raises
    ------
    CouplingError : there is no such file, or it is no array of numbers.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise CouplingError(f"{path}: no such file. Give a .npy array of shape (n, d).") from None
    except (OSError, ValueError, EOFError) as error:
        reason = in_one_line(error)
        raise CouplingError(f"{path}: is no plain .npy array ({reason}). Save it with numpy.save.") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise CouplingError(f"{path}: holds no array of numbers. Save one float32 array with numpy.save.")
    return found


def write_vectors(path: Path, rows: Vectors) -> None:
    """Write a .npy file, whole or not at all."""
    with publish_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows, allow_pickle=False)


def save_vector_bridge(run: RunDir, bridge: VectorBridge) -> None:
    """Publish a bridge as `model/` of a run: weights as safetensors, the rest as JSON, sums in the manifest.

    Raises
    ------
    RunError : another process holds the run.
    ResourceError : the disk is full; nothing is published.
    """
    model = bridge.model
    assert isinstance(model, nn.Module)
    card = {
        "kind": KIND,
        "solver": bridge.solver,
        "dimension": bridge.dimension,
        "reg": bridge.reg,
        "scale": bridge.scaling.scale,
        "steps": bridge.steps,
        **_sizes(model),
        "facts": bridge.facts,
    }
    scaling = {name: getattr(bridge.scaling, name) for name in _OF_SCALING}
    weights = {f"model.{name}": value for name, value in model.state_dict().items()} | scaling
    with publish_model(run, manifest={"kind": KIND, "solver": bridge.solver}) as directory:
        save_file({name: value.contiguous() for name, value in weights.items()}, directory / _WEIGHTS)
        text = json.dumps(card, indent=2, allow_nan=False)
        (directory / _CARD).write_text(f"{text}\n", encoding="utf-8")


def load_vector_bridge(path: Path) -> VectorBridge:
    """Load a bridge from its run, or from the run's `model/`; every file is held against its sum.

    Raises
    ------
    CheckpointError : no finished model, or one that was changed since.
    ModelError : a model of another kind, or weights that are not those of its card.
    """
    directory = path if (path / MANIFEST).is_file() else RunDir(path).require_model()
    require_intact(directory)
    card = _card(directory)
    try:
        weights = load_file(directory / _WEIGHTS)
        model = empty_model(
            card["solver"],
            card["dimension"],
            reg=card["facts"]["scaled_reg"],
            components=tuple(card["components"]),
            width=card["width"],
        )
        model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
        scaling = Scaling(scale=card["scale"], **{name: weights[name] for name in _OF_SCALING})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = in_one_line(error)
        raise ModelError(
            f"{directory}: its weights and its card do not fit ({reason}). Fit the bridge again."
        ) from None
    return VectorBridge(model.eval(), card["solver"], scaling, card["reg"], card["steps"], card["facts"])


def _card(directory: Path) -> dict[str, Any]:
    try:
        card = json.loads((directory / _CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        card = None
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise ModelError(
            f"{directory}: is no bridge between vectors (no {_CARD}). Give a run of `cellbridge fit-bridge`."
        )
    return card


def _sizes(model: nn.Module) -> dict[str, Any]:
    """Return what `empty_model` needs to know beside the dimension."""
    if isinstance(model, MixtureBridge):
        return {"components": [len(model.log_weights)], "width": 0}
    assert isinstance(model, EndpointDrift)
    assert isinstance(model.preconditioning, PotentialPreconditioning)
    assert isinstance(model.network, BridgePerceptron)
    ways = model.preconditioning.to_target, model.preconditioning.to_source
    return {"components": [len(way.log_weights) for way in ways], "width": model.network.width}
