"""Concentrations as tables write them, in micromolar."""

import math
import re

from cellbridge.data.manifest import Manifest
from cellbridge.errors import ManifestError

_TO_MICROMOLAR = {"n": 1e-3, "u": 1.0, "µ": 1.0, "μ": 1.0, "m": 1e3}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?:([nuµμm])[Mm])?")


def unit_of(manifest: Manifest, column: str) -> str:
    """Return the unit of concentrations that are written without one: nM, uM or mM.

    Parameters
    ----------
    column : that holds them.

    Raises
    ------
    ManifestError : the column's name says a unit that its contents often have not, and the manifest says none.
    """
    if manifest.concentration_unit is not None:
        return manifest.concentration_unit
    if column.removeprefix("Metadata_") == "mmoles_per_liter":
        raise ManifestError(
            f"{manifest.file}: mmoles_per_liter holds micromolar in many public plate maps, whatever its name says. "
            "Set concentration_unit: uM or mM."
        )
    return "uM"


def micromolar(text: str, *, unit: str, where: str) -> str:
    """Return a concentration as a number of micromolar, as it was written where it is one already; "" stays.

    Parameters
    ----------
    unit : what it is in where it has no unit of its own.
    where : table, row and column, for the message.

    Raises
    ------
    ManifestError : it is no number, none of a concentration, or has another unit than nM, uM and mM.
    """
    if not text:
        return ""
    match = _NUMBER.fullmatch(text)
    if match is None or not math.isfinite(float(match[1])):
        raise ManifestError(
            f'{where}: "{text}" is no concentration. Write a number, with a point and without a sign, such as 0.5 (in {unit}) or '
            "0.5 uM; leave it empty where there is none."
        )
    factor = _TO_MICROMOLAR[(match[2] or unit)[0]]
    return match[1] if factor == 1.0 else f"{float(match[1]) * factor:.9g}"
