"""What published models say of themselves, read without loading them: before a command has to wait for torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellbridge.conditions import Condition
from cellbridge.errors import ModelError
from cellbridge.runs import MANIFEST, RunDir

_CARD = "cellbridge.json"
_BRIDGE_CARD = "bridge.json"


def model_card(run: Path) -> dict[str, Any]:
    """Return the card of a base's or an adapter's run.

    Raises
    ------
    CheckpointError : the run has no finished model. ModelError : it is neither a base nor an adapter.
    """
    directory = RunDir(run).require_model()
    try:
        card: dict[str, Any] = json.loads((directory / _CARD).read_text(encoding="utf-8"))
        if card["kind"] in ("base", "adapter"):
            return card
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ModelError(f"{directory}: holds no base and no adapter. Give a run of `pretrain` or of `finetune`.")


def bridged_conditions(run: Path) -> list[Condition]:
    """Return the control and the conditions of a bridge between images, from its run's card.

    Raises
    ------
    CheckpointError : the run has no finished model. ModelError : it is no bridge between images.
    """
    directory = run if (run / MANIFEST).is_file() else RunDir(run).require_model()
    try:
        card = json.loads((directory / _BRIDGE_CARD).read_text(encoding="utf-8"))
        return [Condition.parse(name) for name in (card["control"], *card["conditions"])]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{directory}: is no bridge between images. Give a run of `fit-bridge --store`; one of vectors takes --input-array."
        ) from None


def flowed_conditions(run: Path) -> list[Condition]:
    """Return the conditions that a flow leads to, from its run's card.

    Raises
    ------
    CheckpointError : the run has no finished model. ModelError : it is no flow.
    """
    directory = RunDir(run).require_model()
    try:
        card = json.loads((directory / _CARD).read_text(encoding="utf-8"))
        if card["kind"] == "flow":
            return [Condition.parse(name) for name in card["targets"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ModelError(f"{directory}: is no flow. Give a run of `fit-baseline`.")


def adapted_conditions(adapters: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """Return the condition that each adapter was trained for, from its card."""
    return [Condition.parse(card["conditions"][-1]) for card in adapters]


def modelled_conditions(base: Mapping[str, Any], adapters: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """Return the conditions that a base was trained on and those of adapters over it, from their cards."""
    return [*(Condition.parse(name) for name in base["conditions"][1:-1]), *adapted_conditions(adapters)]
