"""What is known of a model beside its weights, and where its directory lies."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cellbridge.adapters import library
from cellbridge.config import (
    AdapterConfig,
    NetworkConfig,
    ScheduleConfig,
    Section,
)
from cellbridge.data.store import StoreInfo
from cellbridge.errors import CheckpointError, ModelError
from cellbridge.networks.classifier import WEIGHTS as CLASSIFIER_WEIGHTS
from cellbridge.networks.stored import CONDITIONER, CONDITIONING
from cellbridge.networks.unet import WEIGHTS as UNET_WEIGHTS
from cellbridge.runs import MANIFEST, RunDir, read_manifest, require_intact

CARD = "cellbridge.json"


NULL_ROW = 0


CONTROL_ROW = 1


SPARE = "<adapter>"


class ModelCard(Section):
    """What a model directory says of itself, beside the weights (`cellbridge.json`)."""

    kind: Literal["base", "adapter"]
    channels: tuple[str, ...]
    size_px: int
    conditions: tuple[str, ...]
    """What the rows of the condition embedding mean; row 0 is the unconditional one."""
    network: NetworkConfig
    schedule: ScheduleConfig
    plates: tuple[str, ...]
    store_sha256: str
    adapter: AdapterConfig | None = None
    base_sha256: str | None = None

    @property
    def control(self) -> str:
        return self.conditions[CONTROL_ROW]

    @property
    def condition(self) -> str:
        """The condition that an adapter was trained for."""
        return self.conditions[-1]

    def row(self, name: str) -> int:
        """Return the embedding row of a condition; raise ModelError where the model was not trained on it."""
        if name not in self.conditions:
            raise ModelError(
                f'the {self.kind} knows {list(self.conditions[1:])}, not "{name}". Fine-tune an adapter for it.'
            )
        return self.conditions.index(name)


def base_rows(conditions: Sequence[str]) -> tuple[str, ...]:
    """Return the embedding rows of a base: unconditional, the conditions (control first), and one that an adapter takes."""
    return ("", *conditions, SPARE)


def check_fit(card: ModelCard, info: StoreInfo) -> None:
    """Raise ModelError where a model and a store differ in channels, their order, size, or the control's name."""
    if card.channels != info.channels or card.size_px != info.size_px:
        raise ModelError(
            f"the model was trained on {card.size_px} px of {list(card.channels)}, but {info.path} holds {info.size_px} px of "
            f"{list(info.channels)}. Prepare the store with the model's size_px and channels."
        )
    if card.control != info.control:
        raise ModelError(
            f'the model was trained on the control "{card.control}", but the control of {info.path} is "{info.control}". '
            f"If they are the same, set control_name: {card.control} in the manifest and prepare the store again."
        )


def model_directory(path: Path, kind: Literal["base", "adapter", "classifier", "flow"] | None = None) -> Path:
    """Return the directory of weights to start from: a run's finished model, or one that was given itself.

    Raises
    ------
    CheckpointError : there is none, it is a file, or a file in it is missing or was changed since it was published.
    ModelError : it is a model of another kind.
    """
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a file; give a run or model directory (safetensors only, pickles are never opened)."
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory. Give a run that ended, or a model directory.")
    run = RunDir(path)
    if run.model.is_dir() or run.checkpoints.is_dir():
        path = run.require_model()
    elif (path / MANIFEST).is_file():
        require_intact(path)
    found = read_manifest(path).get("kind") if (path / MANIFEST).is_file() else None
    if kind is not None and found not in (kind, None):
        raise ModelError(f"{path}: holds a model of kind {found}, expected {kind}. Give the run that trained one.")
    return path


def starting_weights(init_from: Path | None, kind: Literal["base", "adapter", "classifier", "flow"]) -> dict[str, Path]:
    """Return the files that say what a training starts from, as inputs to be hashed; nothing where it starts afresh.

    Of a published model that is its manifest, which has the sum of every file; of a directory that has none, each file of weights:
    the backbone's as `init_from`, and the conditioner's beside it.
    """
    if init_from is None:
        return {}
    directory = model_directory(init_from, kind)
    if (directory / MANIFEST).is_file():
        return {"init_from": directory / MANIFEST}
    backbone = f"unet/{UNET_WEIGHTS}"
    files = {"base": backbone, "adapter": library.WEIGHTS, "classifier": CLASSIFIER_WEIGHTS, "flow": backbone}
    conditioner = directory / CONDITIONING / CONDITIONER
    beside = {"init_from_conditioner": conditioner} if kind in ("base", "flow") and conditioner.is_file() else {}
    return {"init_from": directory / files[kind], **beside}


def inherited_plates(init_from: Path | None) -> tuple[str, ...]:
    """Return the plates that the weights to start from have seen, as far as they came with a card that says so."""
    card = None if init_from is None else model_directory(init_from) / CARD
    if card is None or not card.is_file():
        return ()
    try:
        return tuple(json.loads(card.read_text(encoding="utf-8"))["plates"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{card}: does not say which plates it was trained on ({error}).") from None


def read_card(directory: Path, *, kind: str) -> ModelCard:
    """Read and check a model directory's card."""
    try:
        values = json.loads((directory / CARD).read_text(encoding="utf-8"))
        card = ModelCard.model_validate(values)
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: holds no {CARD}; it was not made by cellbridge.") from None
    except (ValueError, ValidationError) as error:
        raise ModelError(
            f"{directory / CARD}: is not a base's or an adapter's card ({str(error).splitlines()[0]})."
        ) from None
    if card.kind != kind:
        raise ModelError(f"{directory}: holds a model of kind {card.kind!r}, expected {kind!r}.")
    return card
