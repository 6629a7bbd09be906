"""From what tables and plate maps call things to the store's columns: compound, concentration, control, aliases."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cellbridge.conditions import Condition
from cellbridge.data import store
from cellbridge.data.concentrations import micromolar, unit_of
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.faults import apart, each, listed
from cellbridge.data.readers.platemap import BARCODE_TABLE, PlateMap
from cellbridge.data.readers.rows import ImageRow, of_rows
from cellbridge.data.selection import EVERYTHING, Selection
from cellbridge.errors import ManifestError, StoreError, did_you_mean

COMPOUND_COLUMNS = ("Metadata_Compound", "Metadata_compound", "Metadata_pert_iname", "Metadata_broad_sample")
CONCENTRATION_COLUMNS = ("Metadata_Concentration", "Metadata_concentration", "Metadata_mmoles_per_liter")
JUMP_COLUMN = "Metadata_JCP2022"
_SAY = {True: "Correct `control`", False: "Say by `control`, such as Metadata_Compound=DMSO,"}


def join_platemaps(rows: Sequence[ImageRow], platemaps: Mapping[str, PlateMap]) -> list[ImageRow]:
    """Add the plate map's columns to every row; without plate maps the rows stay as they are.

    Raises
    ------
    ManifestError : a plate or well has no entry, or the table and the map say different things.
    """
    if not platemaps:
        return list(rows)
    _require_mapped(rows, platemaps)
    return each("platemap", lambda row: _joined(row, platemaps), rows, otherwise_as_it_is=True)


def _require_mapped(rows: Sequence[ImageRow], platemaps: Mapping[str, PlateMap]) -> None:
    """Refuse plates without a map, and wells that are not in it; each once, however many fields it has."""
    absent: dict[tuple[str, str], list[ImageRow]] = {}
    for row in rows:
        if row.plate not in platemaps:
            absent.setdefault((row.plate, ""), []).append(row)
        elif row.well not in platemaps[row.plate].wells and platemaps[row.plate].is_whole:
            absent.setdefault((row.plate, row.well), []).append(row)
    for (plate, well), some in absent.items():
        with apart("platemap"):
            if not well:
                raise ManifestError(
                    f'{some[0].at("Metadata_Plate")}: plate "{plate}" is in no {BARCODE_TABLE}{of_rows(some)}. Add it there, or '
                    f"correct the plate.{did_you_mean(plate, platemaps)}"
                )
            raise ManifestError(
                f"{some[0].at('Metadata_Well')}: well {well} is not in the map of plate {plate}, "
                f"{platemaps[plate].name}{of_rows(some)}. Add it to the plate map."
            )


def _joined(row: ImageRow, platemaps: Mapping[str, PlateMap]) -> ImageRow:
    entry = platemaps[row.plate].wells.get(row.well) if row.plate in platemaps else None
    if entry is None:
        return replace(row, lacking=True)
    for name, text in entry.columns.items():
        if row.metadata.get(name, text) != text:
            raise ManifestError(
                f'{row.at(name)}: {name} is "{row.metadata[name]}", the plate map says "{text}" ({entry.where}). '
                "Correct one of the two."
            )
    return replace(row, metadata={**row.metadata, **entry.columns}, joined=(*row.joined, entry))


def annotate(
    rows: Sequence[ImageRow], manifest: Manifest, *, others: Sequence[ImageRow] = ()
) -> tuple[list[ImageRow], str]:
    """Return rows with Metadata_Compound, _Concentration and _pert_type filled, and the control's name.

    Rows that the manifest's control query selects are the control, and no others: their pert_type is `negcon` and their compound
    the control's name. Where the manifest gives no query of its own, a row without pert_type and compound is a vehicle well, and
    so the control as well (`blank_control`). Concentrations are in micromolar; a number that is one already stays as the table
    wrote it, as does whatever the control has.

    Parameters
    ----------
    others : the data set's rows that were not asked for: the control has one name in all that is made of a data set, whichever
        wells that is.

    Raises
    ------
    ManifestError : a column is missing, a treated row has no compound, a concentration is no number, or the control has
        several names.
    """
    rows, columns = _renamed(rows, manifest)
    _require_query([*rows, *others], manifest)
    filled = each("condition", lambda row: _with_compound(row, columns, manifest), rows, otherwise_as_it_is=False)
    control = _control_name([*filled, *_quietly_filled(others, manifest)], manifest)
    unit = unit_of(manifest, manifest.columns.get("Metadata_Concentration", columns.concentration or ""))

    def finished(row: ImageRow) -> ImageRow:
        done = _finished(row, control, columns, unit, manifest)
        condition_of(done, control=control, where=columns.at(row, columns.compound))
        return done

    return each("condition", finished, filled, otherwise_as_it_is=False), control


def _quietly_filled(rows: Sequence[ImageRow], manifest: Manifest) -> list[ImageRow]:
    """Return rows that were not asked for with compound and pert_type; what is wrong with one is not told, and leaves it out."""
    if not rows:
        return []
    with listed(), suppress(ManifestError):
        named, columns = _renamed(rows, manifest)
        return each("condition", lambda row: _with_compound(row, columns, manifest), named, otherwise_as_it_is=False)
    return []


def is_control(row: ImageRow) -> bool:
    """Whether an annotated row belongs to the control."""
    return row.metadata["Metadata_pert_type"] == "negcon"


def condition_of(row: ImageRow, *, control: str, where: str | None = None) -> Condition:
    """Return an annotated row's condition; raise ManifestError, with the place, where the store could not tell it from another."""
    try:
        return store.condition_of(
            row.metadata["Metadata_Compound"], row.metadata["Metadata_Concentration"], control=control
        )
    except StoreError as error:
        raise ManifestError(f"{where or row.where}: {error}") from None


def require_control(rows: Iterable[ImageRow], manifest: Manifest, selection: Selection = EVERYTHING) -> None:
    """Raise ManifestError for the first plate without a control row.

    Where wells are chosen, others of the plate may be its control: the fault is of its own kind, and the remedy another.
    """
    found_and_remedy = (
        f"no control among the wells asked for: none of them has {manifest.control}. Add control wells of the plate to --wells, "
        "or set intensity_reference: all."
        if selection.wells
        else f"no control: no row has {manifest.control}. {_SAY[manifest.says_control]} in the manifest, leave the plate out, or set "
        "intensity_reference: all."
    )
    plates: dict[str, bool] = {}
    for row in rows:
        plates[row.plate] = plates.get(row.plate, False) or is_control(row)
    for plate, found in plates.items():
        with apart("control_not_asked_for" if selection.wells else "control"):
            if not found:
                raise ManifestError(f'{manifest.file}: control: plate "{plate}" has {found_and_remedy}')


def aliases(rows: Iterable[ImageRow]) -> dict[str, str]:
    """Return JUMP identifier → compound and, where compounds are such identifiers, the name of each → its identifier.

    A name that several compounds share (a gene with several reagents) stands for none of them.
    """
    jump, named = set(), set()
    for row in rows:
        identifier, compound = row.metadata.get(JUMP_COLUMN, ""), row.metadata["Metadata_Compound"]
        jump.add((identifier, compound))
        if compound == identifier:
            named.add((row.metadata.get("Metadata_Name", ""), compound))
    shared = Counter(name for name, _ in named)
    return {
        alias: compound
        for alias, compound in sorted(jump | {pair for pair in named if shared[pair[0]] == 1})
        if alias and alias != compound
    }


@dataclass(frozen=True)
class _Columns:
    """Which columns say what was done to a well.

    Parameters
    ----------
    compound, concentration : their names in the metadata.
    sources : name in the metadata → what it was copied from, as the manifest's `columns` say.
    """

    compound: str
    concentration: str | None
    sources: Mapping[str, str]

    def at(self, row: ImageRow, column: str) -> str:
        """Return the table, row and column that a text of a row is from."""
        return row.at(self.sources.get(column, column))


def _renamed(rows: Sequence[ImageRow], manifest: Manifest) -> tuple[list[ImageRow], _Columns]:
    """Give the columns that the manifest names their `Metadata_*` names as well, and find those of compound and concentration."""
    present = {name for row in rows for name in row.metadata}
    sources = {}
    for target, source in manifest.columns.items():
        if not target.startswith("Metadata_"):
            continue
        known = target if source.casefold() == target.removeprefix("Metadata_").casefold() else source
        found = next((name for name in (source, f"Metadata_{source}", known) if name in present), None)
        if found is None:
            nearest = did_you_mean(f"Metadata_{source}", present)
            raise ManifestError(f'{manifest.file}: columns: "{source}" is in no table. Correct it.{nearest}')
        sources[target] = found
    named = [
        replace(row, metadata={**row.metadata, **{target: row.metadata.get(sources[target], "") for target in sources}})
        for row in rows
    ]
    present |= sources.keys()
    compound = next((name for name in (*COMPOUND_COLUMNS, JUMP_COLUMN) if name in present), None)
    if compound is None:
        raise ManifestError(
            f"{manifest.file}: no table has a compound column (Metadata_Compound, or compound or broad_sample in a plate map). "
            "Name it under columns: Metadata_Compound."
        )
    concentration = next((name for name in CONCENTRATION_COLUMNS if name in present), None)
    return named, _Columns(compound, concentration, sources)


def _require_query(rows: Sequence[ImageRow], manifest: Manifest) -> None:
    """Refuse a control query whose column no table has, but for the one that nobody wrote."""
    column = manifest.control.partition("=")[0]
    present = {name for row in rows for name in row.metadata} | {"Metadata_Compound"}
    if manifest.says_control and column not in present:
        found = f'{manifest.file}: control: no table has "{column}" ({manifest.control})'
        raise ManifestError(f"{found}. Correct it.{did_you_mean(column, present)}")


def _with_compound(row: ImageRow, columns: _Columns, manifest: Manifest) -> ImageRow:
    """Fill in compound and pert_type: `negcon` for the control, and for no other row."""
    name, kind = row.metadata.get(columns.compound, ""), row.metadata.get("Metadata_pert_type", "")
    column, _, value = manifest.control.partition("=")
    selected = (name if column == "Metadata_Compound" else row.metadata.get(column)) == value
    blank = not name and not kind and not manifest.says_control
    if not name and not selected and not blank:
        said = f"it has not {manifest.control}" if manifest.says_control else f'its pert_type is "{kind}"'
        raise ManifestError(
            f"{columns.at(row, columns.compound)}: the compound is empty, and the well is no control, as {said}. Fill in the "
            "compound, leave the well out, or correct `control` in the manifest."
        )
    treated = kind if kind not in ("", "negcon") else "trt"
    return replace(
        row,
        metadata={
            **row.metadata,
            "Metadata_Compound": name,
            "Metadata_pert_type": "negcon" if selected or blank else treated,
        },
        blank_control=blank,
    )


def _control_name(rows: Sequence[ImageRow], manifest: Manifest) -> str:
    if manifest.control_name is not None:
        return manifest.control_name
    controls = [row.metadata for row in rows if is_control(row)]
    names = sorted({metadata["Metadata_Compound"] for metadata in controls} - {""})
    if len(names) > 1:
        raise ManifestError(
            f"{manifest.file}: the control has {len(names)} names ({', '.join(names[:5])}). Set control_name to the one they share, or "
            "correct control."
        )
    if names:
        return names[0]
    solvents = sorted({metadata.get("Metadata_solvent", "") for metadata in controls} - {""})
    return solvents[0] if len(solvents) == 1 else "DMSO"


def _finished(row: ImageRow, control: str, columns: _Columns, unit: str, manifest: Manifest) -> ImageRow:
    column = columns.concentration
    text = row.metadata.get(column, "") if column else ""
    if column and not is_control(row):
        text = micromolar(text, unit=unit, where=columns.at(row, column))
    metadata = {**row.metadata, "Metadata_Concentration": text}
    if is_control(row):
        if metadata["Metadata_Compound"] not in ("", control):
            metadata["Metadata_ControlCompound"] = metadata["Metadata_Compound"]
        metadata["Metadata_Compound"] = control
    elif metadata["Metadata_Compound"] == control:
        raise ManifestError(
            f'{columns.at(row, columns.compound)}: compound "{control}" is the control\'s, but the well is no control, as it has not '
            f"{manifest.control}. Set control: Metadata_Compound={control} in the manifest, or correct the row."
        )
    return replace(row, metadata=metadata)
