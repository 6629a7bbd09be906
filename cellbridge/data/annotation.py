"""From what tables and plate maps call things to the store's columns: compound, concentration, control, aliases."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cellbridge.conditions import Condition
from cellbridge.data import store
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.faults import apart, each
from cellbridge.data.readers.platemap import WellContents
from cellbridge.data.readers.rows import ImageRow
from cellbridge.errors import ManifestError, StoreError, did_you_mean

COMPOUND_COLUMNS = ("Metadata_Compound", "Metadata_compound", "Metadata_pert_iname", "Metadata_broad_sample")
CONCENTRATION_COLUMNS = ("Metadata_Concentration", "Metadata_concentration", "Metadata_mmoles_per_liter")
JUMP_COLUMN = "Metadata_JCP2022"
_TO_MICROMOLAR = {"n": 1e-3, "u": 1.0, "µ": 1.0, "μ": 1.0, "m": 1e3}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?:([nuµμm])[Mm])?")


def join_platemaps(rows: Sequence[ImageRow], platemaps: dict[str, WellContents]) -> list[ImageRow]:
    """Add the plate map's columns to every row; without plate maps the rows stay as they are.

    Raises
    ------
    ManifestError : a plate or well has no entry, or the table and the map say different things.
    """
    if not platemaps:
        return list(rows)
    return each("platemap", lambda row: _joined(row, platemaps), rows, otherwise_as_it_is=True)


def _joined(row: ImageRow, platemaps: dict[str, WellContents]) -> ImageRow:
    if row.plate not in platemaps:
        raise ManifestError(
            f'{row.where}: plate "{row.plate}" is in no barcode_platemap.csv.{did_you_mean(row.plate, platemaps)}'
        )
    contents = platemaps[row.plate].get(row.well)
    if contents is None:
        raise ManifestError(
            f"{row.where}: well {row.well} is not in the map of plate {row.plate}. Add it to the plate map."
        )
    for name, text in contents.items():
        if row.metadata.get(name, text) != text:
            raise ManifestError(
                f'{row.where}: {name} is "{row.metadata[name]}", the plate map says "{text}". Correct one of the two.'
            )
    return replace(row, metadata={**row.metadata, **contents})


def annotate(rows: Sequence[ImageRow], manifest: Manifest) -> tuple[list[ImageRow], str]:
    """Return rows with Metadata_Compound, _Concentration and _pert_type filled, and the control's name.

    Rows that the manifest's control query selects are the control: their pert_type is `negcon` and their compound the control's
    name. An empty compound is a vehicle well, so it is the control as well unless its pert_type says otherwise. Concentrations
    are in micromolar; a number that is one already stays as the table wrote it, as does whatever the control has.

    Raises
    ------
    ManifestError : a column is missing, a treated row has no compound, a concentration is no number, or the control has
        several names.
    """
    rows = _renamed(rows, {name: column for name, column in manifest.columns.items() if name.startswith("Metadata_")})
    compound, concentration = _source_columns(rows)
    key, _, value = manifest.control.partition("=")
    filled = each("condition", lambda row: _with_compound(row, compound, key, value), rows, otherwise_as_it_is=False)
    control = _control_name(filled, manifest)
    scale = _scale(manifest, manifest.columns.get("Metadata_Concentration", concentration or ""))

    def finished(row: ImageRow) -> ImageRow:
        done = _finished(row, control, concentration, scale)
        condition_of(done, control=control)
        return done

    return each("condition", finished, filled, otherwise_as_it_is=False), control


def is_control(row: ImageRow) -> bool:
    """Whether an annotated row belongs to the control."""
    return row.metadata["Metadata_pert_type"] == "negcon"


def condition_of(row: ImageRow, *, control: str) -> Condition:
    """Return an annotated row's condition; raise ManifestError where the store could not tell it from another."""
    try:
        return store.condition_of(
            row.metadata["Metadata_Compound"], row.metadata["Metadata_Concentration"], control=control
        )
    except StoreError as error:
        raise ManifestError(f"{row.where}: {error}") from None


def require_control(rows: Iterable[ImageRow], manifest: Manifest) -> None:
    """Raise ManifestError for the first plate without a control row."""
    plates: dict[str, bool] = {}
    for row in rows:
        plates[row.plate] = plates.get(row.plate, False) or is_control(row)
    for plate, found in plates.items():
        with apart("control"):
            if not found:
                raise ManifestError(
                    f'plate "{plate}" has no control: no row has {manifest.control}. Correct `control` in the manifest, '
                    "leave the plate out, or set intensity_reference: all."
                )


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


def _renamed(rows: Sequence[ImageRow], columns: Mapping[str, str]) -> list[ImageRow]:
    """Give the columns that the manifest names their `Metadata_*` names as well."""
    present = {name for row in rows for name in row.metadata}
    sources = {}
    for target, source in columns.items():
        found = next((name for name in (source, f"Metadata_{source}") if name in present), None)
        if found is None:
            raise ManifestError(f'columns: "{source}" is in no table.{did_you_mean(f"Metadata_{source}", present)}')
        sources[target] = found
    return [
        replace(
            row, metadata={**row.metadata, **{target: row.metadata.get(name, "") for target, name in sources.items()}}
        )
        for row in rows
    ]


def _source_columns(rows: Sequence[ImageRow]) -> tuple[str, str | None]:
    present = {name for row in rows for name in row.metadata}
    compound = next((name for name in (*COMPOUND_COLUMNS, JUMP_COLUMN) if name in present), None)
    if compound is None:
        raise ManifestError(
            "no table has a compound column (Metadata_Compound, or compound or broad_sample in a plate map). "
            "Name it under columns: Metadata_Compound."
        )
    return compound, next((name for name in CONCENTRATION_COLUMNS if name in present), None)


def _with_compound(row: ImageRow, compound: str, key: str, value: str) -> ImageRow:
    name, kind = row.metadata.get(compound, ""), row.metadata.get("Metadata_pert_type", "")
    control = row.metadata.get(key) == value or (not name and kind in ("", "negcon"))
    if not name and not control:
        raise ManifestError(
            f'{row.where}: {compound} is empty, and pert_type is "{kind}". Fill in the compound, or leave the row out.'
        )
    return replace(
        row,
        metadata={
            **row.metadata,
            "Metadata_Compound": name,
            "Metadata_pert_type": "negcon" if control else kind or "trt",
        },
    )


def _control_name(rows: Sequence[ImageRow], manifest: Manifest) -> str:
    if manifest.control_name is not None:
        return manifest.control_name
    controls = [row.metadata for row in rows if is_control(row)]
    names = sorted({metadata["Metadata_Compound"] for metadata in controls} - {""})
    if len(names) > 1:
        raise ManifestError(
            f"the control has {len(names)} names ({', '.join(names[:5])}). Set control_name in the manifest to the one they share."
        )
    if names:
        return names[0]
    solvents = sorted({metadata.get("Metadata_solvent", "") for metadata in controls} - {""})
    return solvents[0] if len(solvents) == 1 else "DMSO"


def _scale(manifest: Manifest, column: str) -> float | None:
    if manifest.concentration_unit is not None:
        return _TO_MICROMOLAR[manifest.concentration_unit[0]]
    if column.removeprefix("Metadata_") == "mmoles_per_liter":
        raise ManifestError(
            "mmoles_per_liter holds micromolar in many public plate maps, whatever its name says. "
            "Set concentration_unit: uM or mM in the manifest."
        )
    return None


def _finished(row: ImageRow, control: str, column: str | None, scale: float | None) -> ImageRow:
    text = row.metadata.get(column, "") if column else ""
    if not is_control(row):
        text = _micromolar(text, scale, where=f"{row.where} {column}")
    metadata = {**row.metadata, "Metadata_Concentration": text}
    if is_control(row):
        if metadata["Metadata_Compound"] not in ("", control):
            metadata["Metadata_ControlCompound"] = metadata["Metadata_Compound"]
        metadata["Metadata_Compound"] = control
    elif metadata["Metadata_Compound"] == control:
        raise ManifestError(
            f'{row.where}: compound "{control}" is the control\'s, but the row is not selected by the control query. '
            "Correct the row, or `control` in the manifest."
        )
    return replace(row, metadata=metadata)


def _micromolar(text: str, scale: float | None, *, where: str) -> str:
    if not text:
        return ""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ManifestError(
            f'{where}: "{text}" is no concentration. Write a number in micromolar, with a point, such as 0.5.'
        )
    factor = _TO_MICROMOLAR[match[2]] if match[2] else scale or 1.0
    return match[1] if factor == 1.0 else f"{float(match[1]) * factor:.9g}"
