"""Whether stores belong together, and which plates models have seen. Nothing but JSON is read for it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cellbridge.data.store import StoreInfo
from cellbridge.errors import LeakError, StoreError
from cellbridge.runs import fingerprint

_UNNAMED = "translation's models"
_GUIDES = ("weaker model", "guiding classifier")


def require_made_from(reference: StoreInfo, made: Iterable[StoreInfo]) -> list[Path]:
    """Refuse stores that were made from another store than `reference`; return those that do not say what they were made from.

    Raises
    ------
    StoreError : naming the fingerprints of both.
    """
    expected, silent = fingerprint(reference.path), []
    for info in made:
        found = made_from(info)
        if found is None:
            silent.append(info.path)
        elif found != expected:
            raise StoreError(
                f"{info.path}: was made from a store with the fingerprint {found[:12]}…, but {reference.path} has {expected[:12]}…. "
                "Give the very store that it was made from, or make it again from this one."
            )
    return silent


def made_from(info: StoreInfo) -> str | None:
    """Return the fingerprint of the store that was translated, or cut again; None where the store does not say."""
    inputs = info.attributes.get("inputs")
    found = inputs.get("store") if isinstance(inputs, Mapping) else None
    found = found or info.attributes.get("crops_from_sha256")
    return None if found is None else str(found)


def training_plates(classifier: Mapping[str, Any], translated: StoreInfo) -> dict[str, list[str] | None]:
    """Return the training plates of the classifier and of each model behind a translated store; None where they are not known.

    Parameters
    ----------
    classifier : the classifier's card.
    translated : says under `trained_on` which plates the base and each target's adapter have seen.
    """
    found = translated.attributes.get("trained_on")
    models: Mapping[str, Any] = found if isinstance(found, Mapping) else {_UNNAMED: None}
    named = {"classifier": classifier.get("plates"), **{_name(key): plates for key, plates in models.items()}}
    return {name: None if plates is None else sorted(map(str, plates)) for name, plates in named.items()}


def shared_plates(
    trained_on: Mapping[str, list[str] | None], judged: Iterable[str], *, allowed: bool
) -> dict[str, list[str]]:
    """Return, per model, the plates under judgement that it was trained on.

    Raises
    ------
    LeakError : there are some and they are not allowed; the model and the plate are named.
    """
    plates = set(judged)
    shared = {name: sorted(plates & set(seen or ())) for name, seen in trained_on.items()}
    shared = {name: seen for name, seen in shared.items() if seen}
    if shared and not allowed:
        name, seen = next(iter(shared.items()))
        raise LeakError(
            f'the {name} was trained on plate "{seen[0]}", which is under judgement. '
            "Train it on other plates, or set model_plates=shared where the split is by well."
        )
    return shared


def _name(key: str) -> str:
    return key if key in ("base", "bridge", "flow", *_GUIDES, _UNNAMED) else f"adapter of {key}"
