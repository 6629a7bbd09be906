"""Train and test: plates, wells, compounds or doses held out whole, never cells, and a refusal where the two sides share anything."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from cellbridge.conditions import Condition
from cellbridge.data.layout import parse_well
from cellbridge.data.store import condition_of
from cellbridge.errors import ConfigError, LeakError, ManifestError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TRAIN = "train"
TEST = "test"

_KEYS = {
    "cell": ("Metadata_Cell",),
    "field": ("Metadata_Plate", "Metadata_Well", "Metadata_Site"),
    "well": ("Metadata_Plate", "Metadata_Well"),
    "plate": ("Metadata_Plate",),
    "compound": ("Metadata_Compound",),
    "dose": ("Metadata_Compound", "Metadata_Concentration"),
}

By = Literal["plate", "well", "compound", "dose"]


def assign(obs: "pd.DataFrame", *, by: By, test: Sequence[str], control: str | None = None) -> "pd.Series":
    """Return the Metadata_Split column: "test" for what is named, "train" for all others.

    Parameters
    ----------
    obs : one row per cell or field, with Metadata_Plate and Metadata_Well, or for compounds and doses Metadata_Compound and _Concentration.
    by : what is held out whole.
    test : plates; or wells, as "B03" (on every plate) or "PLATE/B03"; or compounds; or compounds at a dose, as "taxol@1".
    control : the control's name, which cannot be held out as a compound: every translation begins with it.

    Raises
    ------
    ConfigError : something that the data does not hold, or the control as a compound.
    """
    import pandas as pd

    if by in ("compound", "dose") and control is not None and control in test:
        raise ConfigError(
            f'split.test: "{control}" is the control, from which every translation starts. Hold out some of its wells or plates.'
        )
    names = _names(obs, by, control=control or "")
    known = {name for column in names for name in column.unique()}
    wanted = [name if name in known else _spelt(name, by) for name in test]
    unknown = next((given for given, name in zip(test, wanted, strict=True) if name not in known), None)
    if unknown is not None:
        raise ConfigError(f'split.test: {by} "{unknown}" is not in the data.{did_you_mean(str(unknown), known)}')
    held_out = names[0].isin(wanted)
    for column in names[1:]:
        held_out |= column.isin(wanted)
    return pd.Series(held_out.map({True: TEST, False: TRAIN}), index=obs.index, name="Metadata_Split", dtype=object)


def _names(obs: "pd.DataFrame", by: By, *, control: str) -> list["pd.Series"]:
    """Return what each row may be called by in `split.test`."""
    import pandas as pd

    if by == "compound":
        return [obs["Metadata_Compound"].astype(str)]
    if by == "dose":
        pairs = list(zip(obs["Metadata_Compound"], obs["Metadata_Concentration"], strict=True))
        named = {pair: condition_of(*pair, control=control).name for pair in dict.fromkeys(pairs)}
        return [pd.Series([named[pair] for pair in pairs], index=obs.index, dtype=object)]
    plates = obs["Metadata_Plate"].astype(str)
    wells = obs["Metadata_Well"].astype(str)
    return [plates] if by == "plate" else [wells, plates + "/" + wells]


def _spelt(name: str, by: By) -> str:
    """Return a well or dose as the store spells it: B03 for b3, taxol@1 for taxol@1.0; anything else as it is."""
    if by == "dose":
        return Condition.parse(name).name
    if by == "well":
        plate, slash, well = name.rpartition("/")
        with suppress(ManifestError):
            return plate + slash + parse_well(well, plate_format=1536)
    return name


def by_well(obs: "pd.DataFrame", *, where: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return plate, well → side, from rows with Metadata_Split; `where` names the rows.

    Raises
    ------
    LeakError : a well whose rows are on both sides, as one that holds two compounds, of which one is held out.
    """
    sides: dict[tuple[str, str], tuple[str, int]] = {}
    columns = (obs[name] for name in ("Metadata_Plate", "Metadata_Well", "Metadata_Split"))
    for row, (plate, well, side) in enumerate(zip(*columns, strict=True)):
        first = sides.setdefault((plate, well), (side, row))
        if first[0] != side:
            pair = " and ".join(
                f"{where[index]} ({obs['Metadata_Compound'].iloc[index]}, {half})"
                for half, index in (first, (side, row))
            )
            raise LeakError(
                f"the same well is in {first[0]} and in {side}: plate {plate} well {well}, {pair}. "
                "Correct the table, or hold out whole wells (split.by: well)."
            )
    return {key: side for key, (side, _) in sides.items()}


def check_disjoint(
    obs_a: "pd.DataFrame",
    obs_b: "pd.DataFrame",
    *,
    by: By = "well",
    sides: tuple[str, str] = (TRAIN, TEST),
    hashes: tuple[Sequence[str], Sequence[str]] | None = None,
) -> None:
    """Refuse two tables of cells that share a cell, an image, a field or a well; or what is held out otherwise.

    Parameters
    ----------
    obs_a, obs_b : one row per cell, with Metadata_Cell, _Plate, _Well and _Site.
    by : what must not be on both sides.
    sides : what the tables are, for the message.
    hashes : `image_hashes` of both, in the order of their rows: the same image under two names is found by its bytes.

    Raises
    ------
    LeakError : naming the first pair of cells and the narrowest thing that they share.
    """
    for what in dict.fromkeys(("cell", "field", "well", by)):
        pair = _first_shared(list(_keys(obs_a, what)), list(_keys(obs_b, what)))
        if pair is not None:
            where = ", ".join(
                f'{name.removeprefix("Metadata_").lower()} "{obs_a[name].iloc[pair[0]]}"' for name in _KEYS[what]
            )
            raise LeakError(
                f"the same {what} is in {sides[0]} and in {sides[1]}: {where} ({_cells(obs_a, obs_b, pair)}). "
                f"Hold out whole {by}s (split.by: {by}) and prepare the store again."
            )
    pair = None if hashes is None else _first_shared(*hashes)
    if pair is not None:
        raise LeakError(
            f"the same image, byte for byte, is in {sides[0]} and in {sides[1]}: {_cells(obs_a, obs_b, pair)}. "
            "Remove one of the two from the data set's table and prepare the store again."
        )


def image_hashes(counts: "np.ndarray") -> list[str]:
    """Return one hash per image (cell, channel, y, x) of counts; "" for an image of one value, which says nothing."""
    from cellbridge.data.survey import image_digest

    return [image_digest(image) for image in counts]


def _keys(obs: "pd.DataFrame", what: str) -> Iterator[str]:
    yield from ("\x1f".join(row) for row in zip(*(obs[name].astype(str) for name in _KEYS[what]), strict=True))


def _first_shared(a: Sequence[str], b: Sequence[str]) -> tuple[int, int] | None:
    first_in_a = {key: index for index, key in reversed(list(enumerate(a))) if key}
    return next(((first_in_a[key], index) for index, key in enumerate(b) if key in first_in_a), None)


def _cells(obs_a: "pd.DataFrame", obs_b: "pd.DataFrame", pair: tuple[int, int]) -> str:
    described = []
    for obs, row in zip((obs_a, obs_b), pair, strict=True):
        cell = obs.iloc[row]
        described.append(f'cell "{cell["Metadata_Cell"]}" of {cell["Metadata_Plate"]} {cell["Metadata_Well"]}')
    return " and ".join(described)
