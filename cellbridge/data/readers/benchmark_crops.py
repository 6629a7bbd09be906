"""Ready-made crops in the layout that IMPA published and CellFlux and others reuse: a table with SAMPLE_KEY, one .npy per crop.

The key says where the crop lies, and so its plate, in one way per data set (`benchmark` in the manifest):

    bbbc021   Week1_22123_1_11_3.0      Week1/22123/1_11_3.0.npy         plate 22123
    cpg0000   BR00116991_A01_1_5        BR00116991/A01_1/A01_1_5.npy     plate BR00116991
    rxrx1     x-HEPG2_01_1_B02_1_5      HEPG2_01/1/B02_1_5.npy           plate HEPG2_01_1

The peers' own split is handed on as Metadata_Benchmark_Split.

References
----------
Palma et al. 2025, "Predicting cell morphological responses to perturbations using generative modeling", Nat Commun 16:505 (IMPA;
Zenodo 8307629); Zhang et al. 2025, "CellFlux", arXiv:2502.09775.
"""

from pathlib import Path

from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.places import place_metadata
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table
from cellbridge.errors import ManifestError

_METADATA = {
    "WELL": "Metadata_Well",
    "BATCH": "Metadata_Batch",
    "SPLIT": "Metadata_Benchmark_Split",
    "CPD_NAME": "Metadata_Compound",
    "BROAD_SAMPLE": "Metadata_Compound",
    "DOSE": "Metadata_Concentration",
    "SMILES": "Metadata_SMILES",
}
_COMPOUND = {"bbbc021": "CPD_NAME", "cpg0000": "BROAD_SAMPLE", "rxrx1": "CPD_NAME"}


def read_benchmark_crops(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per crop; no image is opened.

    Raises
    ------
    ManifestError : a table, column or value is missing, a key is not of the data set's form, or a well is outside its plate.
    """
    rows: list[ImageRow] = []
    for name in manifest.tables:
        with apart("table"):
            rows.extend(_rows(read_table(manifest.locate(name, root, where="tables"), root=root), manifest, root))
    return rows


def _rows(table: Table, manifest: Manifest, root: Path) -> list[ImageRow]:
    benchmark = manifest.benchmark or ""
    table.require("SAMPLE_KEY", "SPLIT", "STATE" if benchmark != "rxrx1" else "ANNOT", _COMPOUND[benchmark])
    wells = manifest.columns.get("Metadata_Well", "WELL")
    if wells not in table.columns and "Metadata_Well" not in manifest.constants:
        raise ManifestError(
            f'{table.name}: no column "{wells}". Name the one with the wells under columns: {{Metadata_Well: …}}, or, where the '
            "table has none, give one well for all under constants (splits by well are then impossible)."
        )
    other = ({"CPD_NAME", "BROAD_SAMPLE"} - {_COMPOUND[benchmark]}).pop()
    named = {name: _METADATA.get(name, f"Metadata_{name}") for name in table.columns if name != other}
    table.require_distinct(named)
    names = {meaning: name for name, meaning in named.items()} | {"Metadata_Well": wells}
    rows = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        with apart("row"):
            path, plate = _path_and_plate(row["SAMPLE_KEY"], benchmark, where=f"{where} SAMPLE_KEY")
            metadata = {named[name]: text for name, text in row.items() if name != other}
            metadata |= {"Metadata_Plate": plate}
            if wells in row:
                metadata["Metadata_Well"] = row[wells]
            metadata = {**manifest.constants, **metadata}
            rows.append(
                ImageRow(
                    metadata=place_metadata(metadata, plate_format=manifest.plate_format, where=where, names=names),
                    images={"": Plane(resolve_path(path, root, where=f"{where} SAMPLE_KEY"))},
                    where=where,
                    names=names,
                )
            )
    return rows


def _path_and_plate(key: str, benchmark: str, *, where: str) -> tuple[str, str]:
    _, dash, rest = key.partition("-")
    parts = (rest if benchmark == "rxrx1" else key).split("_")
    if len(parts) < (4 if benchmark == "rxrx1" else 3) or not all(parts) or (benchmark == "rxrx1") != bool(dash):
        raise ManifestError(
            f'{where}: "{key}" is no key of {benchmark}. Correct benchmark in the manifest, or the table.'
        )
    if benchmark == "rxrx1":
        return f"{parts[0]}_{parts[1]}/{parts[2]}/{'_'.join(parts[3:])}.npy", "_".join(parts[:3])
    if benchmark == "cpg0000":
        return f"{parts[0]}/{parts[1]}_{parts[2]}/{'_'.join(parts[1:])}.npy", parts[0]
    return f"{parts[0]}/{parts[1]}/{'_'.join(parts[2:])}.npy", parts[1]
