"""One synthetic plate, written as each community format has it: the same fields, conditions and pixels every time."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cellbridge.data.manifest import Kind, Manifest

PLATE = "0001053597806"
CHANNELS = ("DNA", "ER", "Brightfield", "AGP")
STAINS = ("DNA", "ER", "AGP")
WELLS = {"B02": ("", ""), "B03": ("NA", "1"), "C04": ('=HYPERLINK("http://x","y")', "0.5")}
"""Well → compound (empty: vehicle) and micromolar."""
SITES = ("1", "2")
SHAPE = (10, 12)
CONDITIONS = {"B02": "DMSO", "B03": "NA@1", "C04": '=HYPERLINK("http://x","y")@0.5'}


def pixels(well: str, site: str, channel: str) -> np.ndarray:
    """Return the (y, x) counts of one plane; no two are alike, and none holds a zero."""
    seed = (list(WELLS).index(well) * 2 + SITES.index(site)) * 4 + CHANNELS.index(channel)
    return np.random.default_rng(seed).integers(1, 60000, SHAPE).astype(np.uint16)


def field(well: str, site: str) -> np.ndarray:
    """Return all four channels (channel, y, x)."""
    return np.stack([pixels(well, site, channel) for channel in CHANNELS])


@dataclass(frozen=True)
class Written:
    """A format: how it writes the plate (what of the manifest it returns), and a change that leads one path out of the root."""

    kind: Kind
    write: Callable[[Path], dict[str, Any]]
    escape: tuple[str, str, str] | None = None
    """File, and what is replaced in it by what."""


def manifest(**keys: Any) -> Manifest:
    given = {
        "name": "written",
        "licence": "CC0-1.0",
        "citation": "none",
        "nucleus_channel": "DNA",
        "leave_out": ["Brightfield"],
    }
    return Manifest.model_validate({"channels": list(CHANNELS), "concentration_unit": "uM", **given, **keys})


def written_plate(name: str, folder: Path) -> Manifest:
    """Write the plate in a format, and return the manifest that describes it."""
    return manifest(kind=FORMATS[name].kind, **FORMATS[name].write(folder))


def each_field() -> list[tuple[str, str]]:
    return [(well, site) for well in WELLS for site in SITES]


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]], *, delimiter: str = ",") -> None:
    """Write a table; .gz by its name, with a byte-order mark and CRLF as Excel does where it is no .gz."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else b"\xef\xbb\xbf" + data)


def write_tiff(file: Path, image: np.ndarray, **options: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(file, image, photometric="minisblack", metadata=None, **options)
    return file.name


def write_platemaps(folder: Path) -> dict[str, Any]:
    """Write barcode_platemap.csv and a TAB-separated map in which the vehicle has no compound."""
    write_csv(folder / "maps/barcode_platemap.csv", [{"Assay_Plate_Barcode": PLATE, "Plate_Map_Name": "m"}])
    rows = [
        {
            "plate_map_name": "m",
            "well_position": well.lower(),
            "broad_sample": name,
            "mmoles_per_liter": dose,
            "solvent": "DMSO",
        }
        for well, (name, dose) in WELLS.items()
    ]
    write_csv(folder / "maps/platemap/m.txt", rows, delimiter="\t")
    return {"platemaps": ["maps"]}


def well_columns(well: str) -> dict[str, str]:
    """Return what a table says itself of a well, the control by a name of its own."""
    name, dose = WELLS[well]
    kind = "trt" if name else "negcon"
    return {"Metadata_Compound": name or "DMSO", "Metadata_Concentration": dose, "Metadata_pert_type": kind}


# --- one function per format: writes below `folder`, returns the manifest's keys


def load_data(folder: Path) -> dict[str, Any]:
    rows = []
    for well, site in each_field():
        row: dict[str, Any] = {"Metadata_Plate": PLATE, "Metadata_Well": well, "Metadata_Site": site}
        for channel in CHANNELS:
            name = write_tiff(
                folder / "images" / f"{well}_{site}_{channel}.tif", pixels(well, site, channel), tile=(16, 16)
            )
            row |= {f"FileName_Orig{channel}": name, f"PathName_Orig{channel}": "/home/ubuntu/bucket/p/images/"}
        rows.append(row)
    write_csv(folder / "load_data.csv.gz", rows)
    prefixes = {"/home/ubuntu/bucket/p": "."}
    return {"tables": ["load_data.csv.gz"], "prefixes": prefixes, **write_platemaps(folder)}


def load_data_with_illum(folder: Path) -> dict[str, Any]:
    rows = []
    for well, site in each_field():
        row: dict[str, Any] = {}
        for channel in CHANNELS:
            name = write_tiff(
                folder / "s/images" / f"{well}{site}{channel}.tiff", pixels(well, site, channel), compression="zlib"
            )
            row |= {f"URL_Orig{channel}": f"s3://gallery/p/s/images/{name}"}
            row |= {f"URL_Illum{channel}": f"s3://gallery/p/s/illum/{PLATE}_Illum{channel}.npy"}
        rows.append(
            {**row, "Metadata_Plate": PLATE, "Metadata_Well": well, "Metadata_Site": site, **well_columns(well)}
        )
    write_csv(folder / "load_data_with_illum.csv", rows)
    return {"tables": ["load_data_with_illum.csv"], "prefixes": {"s3://gallery/p/": "."}}


def pages_of_one_file(folder: Path) -> dict[str, Any]:
    rows = []
    for well, site in each_field():
        name = write_tiff(folder / f"{well}_{site}.tif", field(well, site))
        row: dict[str, Any] = {"Image_Metadata_Plate": PLATE, "Image_Metadata_Well": well, "Image_Metadata_Site": site}
        for page, channel in enumerate(CHANNELS):
            row |= {f"Image_FileName_{channel}": name, f"Image_Frame_{channel}": page, f"Image_Series_{channel}": 0}
        rows.append({**row, **{f"Image_{key}": text for key, text in well_columns(well).items()}})
    write_csv(folder / "Image.csv", rows)
    return {"tables": ["Image.csv"]}


def jump_tables(folder: Path) -> dict[str, Any]:
    """load_data as parquet, and the wells' identifiers and names in JUMP's own tables."""
    import pyarrow
    import pyarrow.parquet

    keys = {**load_data(folder), "platemaps": []}
    with gzip.open(folder / "load_data.csv.gz", "rt", newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = pyarrow.Table.from_pylist([{**row, "Metadata_Site": int(row["Metadata_Site"])} for row in rows])
    pyarrow.parquet.write_table(table, folder / "load_data.parquet")
    wells, compounds, controls = (
        [],
        [],
        [{"Metadata_JCP2022": "JCP_1", "Metadata_pert_type": "negcon", "Metadata_Name": "DMSO"}],
    )
    for number, (well, (name, dose)) in enumerate(WELLS.items(), start=1):
        wells.append(
            {"Metadata_Plate": PLATE, "Metadata_Well": well, "Metadata_JCP2022": f"JCP_{number}", "Metadata_Dose": dose}
        )
        compounds.append({"Metadata_JCP2022": f"JCP_{number}", "Metadata_Compound": name or "DMSO"})
    write_csv(folder / "metadata/well.csv.gz", wells)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(compounds), folder / "metadata/compound.parquet")
    write_csv(folder / "metadata/perturbation_control.csv", controls)
    place, identifier = {k: k for k in ("Metadata_Plate", "Metadata_Well")}, {"Metadata_JCP2022": "Metadata_JCP2022"}
    joins = [
        {"table": "metadata/well.csv.gz", "keys": place},
        {"table": "metadata/compound.parquet", "keys": identifier},
        {"table": "metadata/perturbation_control.csv", "keys": identifier, "complete": False},
    ]
    columns = {"Metadata_Concentration": "Metadata_Dose"}
    return {**keys, "tables": ["load_data.parquet"], "metadata_tables": joins, "columns": columns}


def samplesheet(folder: Path) -> dict[str, Any]:
    rows = []
    for well, site in each_field():
        for channel in CHANNELS:
            write_tiff(folder / "i" / f"{well}{site}{channel}.tif", pixels(well, site, channel), compression="lzw")
            path = f"s3://b/i/{well}{site}{channel}.tif"
            place = {"source": "s", "batch": "b", "plate": PLATE, "well": well, "site": site}
            place |= {"row": ord(well[0]) - ord("A") + 1, "col": int(well[1:])}
            rows.append({"channel": channel, "path": path, **place, "field_id": site, "plane_id": 1})
    write_csv(folder / "samplesheet.csv", rows)
    keys = {"tables": ["samplesheet.csv"], "prefixes": {"s3://b/": "."}}
    return {**keys, **write_platemaps(folder)}


def planes_of_an_array(folder: Path, *, array: str = "images.zarr/images") -> dict[str, Any]:
    import zarr

    stack = np.stack([field(well, site) for well, site in each_field()])
    if array.endswith(".npy"):
        np.save(folder / array, stack)
    else:
        group = zarr.open_group(str(folder / "images.zarr"), mode="w")
        group.create_array("images", data=stack, chunks=(1, 1, *SHAPE))
    rows = []
    for number, (well, site) in enumerate(each_field()):
        for index, channel in enumerate(CHANNELS):
            place = {"path": f"{array}[{number},{index}]", "plate": PLATE, "well": well, "site": site, "channel": index}
            rows.append({**place, "channel_name": channel, **well_columns(well)})
    write_csv(folder / "planes.csv", rows)
    return {"tables": ["planes.csv"], "columns": {"channel": "channel_name"}}


def bbbc021(folder: Path) -> dict[str, Any]:
    names = dict(zip(CHANNELS, ("DAPI", "Tubulin", "Light", "Actin"), strict=True))
    rows = []
    for number, (well, site) in enumerate(each_field()):
        row: dict[str, Any] = {"TableNumber": 4, "ImageNumber": number}
        for index, (channel, name) in enumerate(names.items(), start=1):
            file = write_tiff(folder / "Week4/p" / f"{well}_s{site}_w{index}BED.tif", pixels(well, site, channel))
            row |= {f"Image_FileName_{name}": file, f"Image_PathName_{name}": "Week4/p"}
        row |= {"Image_Metadata_Plate_DAPI": PLATE, "Image_Metadata_Well_DAPI": well, "Replicate": 1}
        compound, dose = WELLS[well]
        rows.append({**row, "Image_Metadata_Compound": compound or "DMSO", "Image_Metadata_Concentration": dose or "0"})
    write_csv(folder / "BBBC021_v1_image.csv", rows)
    renamed = {name: channel for channel, name in names.items()}
    keys = {"tables": ["BBBC021_v1_image.csv"], "channel_names": renamed, "plate_format": 96}
    return {**keys, "control": "Metadata_Compound=DMSO"}


def image_xpress(folder: Path) -> dict[str, Any]:
    for well, site in each_field():
        for index, channel in enumerate(CHANNELS, start=1):
            write_tiff(
                folder / f"{PLATE}/IXMtest_{well}_s{site}_w{index}64FBEEF7-F77C.tif", pixels(well, site, channel)
            )
        write_tiff(folder / f"{PLATE}/IXMtest_{well}_s{site}_w1_thumb64FB.tif", np.ones((4, 4), np.uint16))
    pattern = r"(?P<plate>[^/]+)/\w+_(?P<well>[A-P]\d\d)_s(?P<site>\d)_w(?P<channel>\d)[0-9A-F-]*\.tif"
    named = {str(index): channel for index, channel in enumerate(CHANNELS, start=1)}
    keys = {"folders": [PLATE], "pattern": pattern, "ignore": ".*_thumb.*", "channel_names": named}
    return {**keys, **write_platemaps(folder)}


def pages_by_name(folder: Path) -> dict[str, Any]:
    """Phenix-like names with row and column as numbers, channels as pages, and the compounds in a list of the plate's wells."""
    for well, site in each_field():
        row, column = ord(well[0]) - 64, int(well[1:])
        write_tiff(folder / f"images/r{row:02d}c{column:02d}f{int(site):02d}.tif", field(well, site))
    wells = [{"well": well, **well_columns(well)} for well in WELLS]
    write_csv(folder / "wells.csv", wells, delimiter=";")
    keys: dict[str, Any] = {"folders": ["images"], "constants": {"Metadata_Plate": PLATE}}
    keys["pattern"] = r"images/r(?P<row>\d\d)c(?P<column>\d\d)f(?P<site>\d\d)\.tif"
    return {**keys, "metadata_tables": [{"table": "wells.csv", "keys": {"Metadata_Well": "well"}}]}


def ome_zarr(folder: Path, *, version: str = "0.5") -> dict[str, Any]:
    import zarr

    plate = folder / f"{PLATE}.ome.zarr"
    zarr_format: Any = 2 if version == "0.4" else 3
    rows, columns = [{"name": name} for name in "ABC"], [{"name": f"{number:02d}"} for number in range(1, 5)]
    wells = [
        {"path": f"{well[0]}/{well[1:]}", "rowIndex": ord(well[0]) - 65, "columnIndex": int(well[1:]) - 1}
        for well in WELLS
    ]
    described = {"plate": {"version": version, "rows": rows, "columns": columns, "wells": wells}}
    _write_group(plate, described, version=version)
    for well in WELLS:
        images = [{"path": site, "acquisition": 0} for site in SITES]
        _write_group(plate / well[0] / well[1:], {"well": {"version": version, "images": images}}, version=version)
    axes = [
        {"name": "t", "type": "time"},
        {"name": "c", "type": "channel"},
        *({"name": n, "type": "space"} for n in "zyx"),
    ]
    omero = {"channels": [{"label": channel} for channel in CHANNELS]}
    for well, site in each_field():
        place = plate / well[0] / well[1:] / site
        scales = [{"version": version, "axes": axes, "datasets": [{"path": "s0"}]}]
        _write_group(place, {"multiscales": scales, "omero": omero}, version=version)
        data = field(well, site)[None, :, None]
        layout: dict[str, Any] = {"chunks": (1, 1, 1, 10, 6)} | (
            {"shards": (1, 2, 1, 10, 12)} if version == "0.5" else {}
        )
        zarr.create_array(str(place / "s0"), data=data, zarr_format=zarr_format, **layout)
    return {"folders": [plate.name], **write_platemaps(folder)}


def _write_group(folder: Path, attributes: dict[str, Any], *, version: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if version == "0.4":
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(attributes))
        return
    values = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": version, **attributes}}}
    (folder / "zarr.json").write_text(json.dumps(values))


def crops(folder: Path) -> dict[str, Any]:
    rows = []
    for well, site in each_field():
        np.save(folder / f"{well}_{site}.npy", np.moveaxis(field(well, site), 0, 2))
        rows.append(
            {"path": f"{well}_{site}.npy", "Metadata_Plate": PLATE, "Metadata_Well": well, "Metadata_Site": site}
            | well_columns(well)
        )
    write_csv(folder / "cells.csv", rows)
    return {"tables": ["cells.csv"], "axes": "HWC"}


def benchmark_crops(folder: Path) -> dict[str, Any]:
    """IMPA's BBBC021: an index without a name in front, STATE 0 for the control, the plate in the key."""
    rows = []
    for number, (well, site) in enumerate(each_field()):
        file = folder / f"Week1/{PLATE}/{number}_{site}_3.0.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.moveaxis(field(well, site), 0, 2))
        compound, dose = WELLS[well]
        key = {
            "": number,
            "SAMPLE_KEY": f"Week1_{PLATE}_{number}_{site}_3.0",
            "SPLIT": "train",
            "STATE": int(bool(compound)),
        }
        rows.append(
            {
                **key,
                "ANNOT": "x",
                "CPD_NAME": compound or "DMSO",
                "DOSE": dose or "0",
                "WELL": well,
                "Metadata_Site": site,
            }
        )
    write_csv(folder / "metadata/bbbc021_df_all.csv", rows)
    keys = {"benchmark": "bbbc021", "tables": ["metadata/bbbc021_df_all.csv"], "axes": "HWC"}
    return {**keys, "control": "Metadata_STATE=0"}


FORMATS = {
    "load_data.csv.gz and plate maps": Written(
        "load_data", load_data, ("load_data.csv.gz", "bucket/p/images/", "bucket/p/../../../etc/")
    ),
    "load_data_with_illum.csv": Written(
        "load_data",
        load_data_with_illum,
        ("load_data_with_illum.csv", "s3://gallery/p/s/images/", "s3://gallery/p/../../etc/"),
    ),
    "pages of one file": Written("load_data", pages_of_one_file, ("Image.csv", "B02_1.tif", "/etc/B02_1.tif")),
    "JUMP tables": Written("load_data", jump_tables),
    "nf-core samplesheet": Written("samplesheet", samplesheet, ("samplesheet.csv", "s3://b/i/", "/etc/")),
    "planes of a Zarr array": Written("planes", planes_of_an_array, ("planes.csv", "images.zarr/", "../images.zarr/")),
    "planes of a NumPy array": Written(
        "planes", lambda folder: planes_of_an_array(folder, array="all.npy"), ("planes.csv", "all.npy", "../all.npy")
    ),
    "BBBC021": Written("bbbc021", bbbc021, ("BBBC021_v1_image.csv", "Week4/p", "../Week4/p")),
    "ImageXpress names": Written("pattern", image_xpress),
    "pages by name": Written("pattern", pages_by_name),
    "OME-Zarr 0.4": Written(
        "ome_zarr",
        lambda folder: ome_zarr(folder, version="0.4"),
        (f"{PLATE}.ome.zarr/B/02/.zattrs", '"path": "1"', '"path": "../../../../1"'),
    ),
    "OME-Zarr 0.5": Written(
        "ome_zarr", ome_zarr, (f"{PLATE}.ome.zarr/B/02/zarr.json", '"path": "1"', '"path": "../../../../1"')
    ),
    "crops": Written("crops", crops, ("cells.csv", "B02_1.npy", "../B02_1.npy")),
    "IMPA's crops": Written(
        "benchmark_crops", benchmark_crops, ("metadata/bbbc021_df_all.csv", f"Week1_{PLATE}_", ".._.._")
    ),
}
