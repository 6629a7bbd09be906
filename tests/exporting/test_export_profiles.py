"""Profiles of wells, and AnnData: what goes in comes out, pycytominer, copairs and scanpy's readers take them as they are."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from small_stores import CHANNELS, PER_SITE, PLATES, SITES, WELLS

from cellbridge.data.exporting.anndata_file import made_here, write_anndata
from cellbridge.data.exporting.cells import Cells, gather_cells
from cellbridge.data.exporting.feature_tables import Features, read_features
from cellbridge.data.exporting.intensities import measured_intensities
from cellbridge.data.exporting.joining import described, rows_of_cells
from cellbridge.data.exporting.profiles import COUNT, feature_names, well_profiles
from cellbridge.data.image_arrays import read_array_file
from cellbridge.data.image_sets import Form
from cellbridge.data.store import open_store
from cellbridge.errors import ManifestError, StoreError
from cellbridge.tables import write_parquet


@pytest.fixture(scope="module")
def measured(cells: Cells) -> pd.DataFrame:
    return measured_intensities(cells)


@pytest.fixture
def real(stores: Path) -> Cells:
    return gather_cells([open_store(stores / "real.zarr")])


def written(file: Path, frame: pd.DataFrame, **options: object) -> Path:
    frame.to_csv(file, index=False, **options)
    return file


def profiled(file: Path, cells: Cells) -> pd.DataFrame:
    """Return the profiles of a table of features."""
    features = read_features(file, cells=cells)
    return well_profiles(described(features, cells, file=file), features.values, by="median").table


# --- measured in the counts


def test_intensities_are_those_of_the_pixels_of_each_region(cells: Cells, measured: pd.DataFrame) -> None:
    for index in (0, 20, 45):
        counts, mask = cells.counts(np.array([index]))[0], cells.masks(np.array([index]))[0]
        for region, inside in {"Cells": mask > 0, "Nuclei": mask == 2}.items():
            for number, channel in enumerate(CHANNELS):
                pixels = counts[number][inside].astype(float)
                for name, value in {"Mean": pixels.mean(), "Std": pixels.std(), "Integrated": pixels.sum()}.items():
                    found = measured[f"{region}_Intensity_{name}Intensity_{channel}"].iloc[index]
                    assert found == pytest.approx(value, rel=1e-12)
        assert measured["Nuclei_AreaShape_Area"].iloc[index] == (mask == 2).sum()


def test_a_region_that_a_cell_lacks_is_missing_and_not_zero(cells: Cells, measured: pd.DataFrame) -> None:
    without = (cells.obs["Metadata_Origin"] == "generated").to_numpy()  # their masks are all nucleus
    assert measured.loc[without, "Cytoplasm_Intensity_MeanIntensity_DNA"].isna().all()
    assert measured.loc[without, "Cytoplasm_Intensity_IntegratedIntensity_DNA"].isna().all()
    assert (measured.loc[without, "Cytoplasm_AreaShape_Area"] == 0).all()
    assert measured.loc[~without].notna().all(axis=None)


# --- profiles


def test_a_profile_is_the_median_of_its_cells_and_of_no_others(cells: Cells, measured: pd.DataFrame) -> None:
    table = well_profiles(cells.obs.filter(regex="^Metadata_"), measured, by="median").table
    assert len(table) == len(PLATES) * (len(WELLS) + 3)
    assert table[COUNT].eq(SITES * PER_SITE).all()
    name = "Cells_Intensity_MeanIntensity_ER"
    for row in table.to_dict("records"):
        own = np.ones(len(cells), dtype=bool)
        for key in ("Plate", "Well", "Compound", "Origin", "Model"):
            own &= (cells.obs[f"Metadata_{key}"] == row[f"Metadata_{key}"]).to_numpy()
        assert own.sum() == SITES * PER_SITE
        assert row[name] == pytest.approx(np.median(measured[name].to_numpy()[own]), rel=1e-12)


def test_names_of_compounds_and_plates_survive_in_parquet(tmp_path: Path, cells: Cells, measured: pd.DataFrame) -> None:
    table = well_profiles(cells.obs.filter(regex="^Metadata_"), measured, by="mean").table
    write_parquet(table, tmp_path / "p.parquet")
    back = pd.read_parquet(tmp_path / "p.parquet")
    assert set(back["Metadata_Compound"]) == set(WELLS.values())
    assert set(back["Metadata_Plate"]) == set(PLATES)
    assert list(back.columns) == list(table.columns)
    assert "Metadata_Site" not in back
    assert "Metadata_Split" in back


def test_pycytominer_normalizes_profiles_as_they_are(tmp_path: Path, cells: Cells, measured: pd.DataFrame) -> None:
    pycytominer = pytest.importorskip("pycytominer")
    profiles = well_profiles(cells.obs.filter(regex="^Metadata_"), measured.filter(like="Cells_Intensity"), by="median")
    write_parquet(profiles.table, tmp_path / "profiles.parquet")
    found = pycytominer.normalize(
        profiles=str(tmp_path / "profiles.parquet"),
        samples="Metadata_pert_type == 'negcon'",
        method="standardize",
    )
    features = found[list(profiles.features)]
    control = (found["Metadata_pert_type"] == "negcon").to_numpy()
    assert np.allclose(features[control].mean(), 0, atol=1e-9)
    assert np.allclose(features[control].std(ddof=0), 1, atol=1e-9)
    assert list(found["Metadata_Plate"]) == list(profiles.table["Metadata_Plate"])


def test_copairs_finds_the_compound_that_was_made_bright(real: Cells) -> None:
    copairs = pytest.importorskip("copairs.map")
    values = measured_intensities(real).filter(like="Cells_Intensity_Mean")
    by_site = real.obs.filter(regex="^Metadata_").assign(
        Metadata_Well=real.obs["Metadata_Well"] + real.obs["Metadata_Site"]
    )
    table = well_profiles(by_site, values, by="median").table
    features = table.filter(regex="^Cells_")
    control = (table["Metadata_pert_type"] == "negcon").to_numpy()
    scaled = ((features - features[control].mean()) / features[control].std()).to_numpy()
    found = copairs.average_precision(
        table.filter(regex="^Metadata_"),
        scaled,
        pos_sameby=["Metadata_Compound"],
        pos_diffby=[],
        neg_sameby=[],
        neg_diffby=["Metadata_Compound"],
        progress_bar=False,
    )
    precision = found.groupby("Metadata_Compound")["average_precision"].mean()
    assert precision["NA"] == 1.0
    assert precision["NA"] > precision["null"]


def test_features_without_a_compartment_get_one() -> None:
    assert feature_names(["Cells_A", "Nuclei_B", "Embedding_0", "C"]) == [
        "Cells_A",
        "Nuclei_B",
        "Cells_Embedding_0",
        "Cells_C",
    ]
    with pytest.raises(ManifestError, match=r"Cells_A.*with and without"):
        feature_names(["Cells_A", "A"])


# --- tables that others made


def test_a_cellprofiler_table_of_wells_is_joined_to_what_the_store_knows(tmp_path: Path, real: Cells) -> None:
    frame = pd.DataFrame(
        {
            "ImageNumber": [1, 2, 3],
            "Image_Metadata_Plate": [PLATES[0]] * 3,
            "Image_Metadata_Well": ["b2", "B03", "P24"],
            "FileName_DNA": ["a.tif", "b.tif", "c.tif"],
            "Nuclei_AreaShape_Area": ["1.5", "nan", ""],
            "Cells_Number": ["1", "2", "3"],
        }
    )
    file = tmp_path / "Image.csv"
    file.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False, sep=";", lineterminator="\r\n").encode())
    features = read_features(file, cells=real)
    assert features.left_out == ("FileName_DNA",)
    table = profiled(file, real)
    assert list(table["Metadata_Well"]) == ["B02", "B03", "P24"]
    assert list(table["Metadata_Compound"]) == ["DMSO", "NA", "null"]
    assert list(table["Metadata_pert_type"]) == ["negcon", "trt", "trt"]
    assert list(table["Metadata_Plate"]) == [PLATES[0]] * 3
    assert list(table["Nuclei_AreaShape_Area"].isna()) == [False, True, True]
    assert "Cells_ImageNumber" not in table


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_of_cells_means_the_same_in_every_format(tmp_path: Path, cells: Cells, suffix: str) -> None:
    keys = cells.obs[["Metadata_Cell", "Metadata_Model"]].reset_index(drop=True)
    frame = keys.assign(A=np.arange(len(cells)) * 0.5).sample(frac=1, random_state=0)
    file = tmp_path / f"features{suffix}"
    frame.to_parquet(file) if suffix == ".parquet" else written(file, frame)
    features = read_features(file, cells=cells)
    order = rows_of_cells(features, cells, file=file)
    assert np.array_equal(features.values["A"].to_numpy()[order], np.arange(len(cells)) * 0.5)
    known = described(features, cells, file=file)
    assert list(known["Metadata_Compound"]) == list(cells.obs["Metadata_Compound"].iloc[frame.index])


def test_cells_that_two_models_translated_are_told_apart(cells: Cells) -> None:
    assert cells.obs["Metadata_Cell"].duplicated().any()
    assert cells.obs.index.is_unique
    without = Features(cells.obs[["Metadata_Cell"]].reset_index(drop=True), pd.DataFrame({"A": np.ones(len(cells))}))
    with pytest.raises(ManifestError, match="Metadata_Model"):
        described(without, cells, file=Path("x.csv"))


def test_arms_of_an_evaluation_do_not_share_a_profile_nor_take_a_cell_s_condition(tmp_path: Path, real: Cells) -> None:
    ids = real.obs["Metadata_Cell"].to_numpy()[:3]
    arms = pd.DataFrame(
        {
            "Metadata_Target": "NA@1.5",
            "Metadata_Arm": ["identity"] * 3 + ["model:ddib"] * 3,
            "Metadata_Cell": [*ids, *ids],
            "Metadata_Plate": PLATES[0],
            "Metadata_Well": "B02",
            "predicted": "DMSO",
            "hit": [False] * 3 + [True] * 3,
            "error": np.arange(6.0),
        }
    )
    write_parquet(arms, tmp_path / "cells.parquet")
    table = profiled(tmp_path / "cells.parquet", real).set_index("Metadata_Arm")
    assert table.loc["identity", "Cells_error"] == 1.0
    assert table.loc["model:ddib", "Cells_error"] == 4.0
    assert table.loc["model:ddib", "Cells_hit"] == 1.0
    assert "Metadata_Compound" not in table


def test_embeddings_belong_to_the_cells_in_order_or_to_a_table(tmp_path: Path, cells: Cells, real: Cells) -> None:
    array = np.random.default_rng(0).normal(size=(len(cells), 4)).astype(np.float32)
    np.save(tmp_path / "e.npy", array)
    features = read_features(tmp_path / "e.npy", cells=cells)
    assert np.array_equal(features.values.to_numpy(), array)
    assert features.values.to_numpy().dtype == np.float32
    assert np.array_equal(rows_of_cells(features, cells, file=tmp_path / "e.npy"), np.arange(len(cells)))
    with pytest.raises(ManifestError, match=rf"{len(cells)} rows.*{len(real)}.*rows_of"):
        read_features(tmp_path / "e.npy", cells=real)
    some = written(tmp_path / "rows.csv", real.obs[["Metadata_Cell"]].iloc[[5, 2]])
    np.save(tmp_path / "two.npy", array[:2])
    two = read_features(tmp_path / "two.npy", cells=real, rows_of=some)
    assert list(described(two, real, file=some)["Metadata_Cell"]) == list(real.obs["Metadata_Cell"].iloc[[5, 2]])
    with pytest.raises(ManifestError, match=r"2 rows for 24 cells.*not in it"):
        rows_of_cells(two, real, file=some)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("Metadata_Cell,A\nnobody,1\n", r"row 2: cell \"nobody\" is not in"),
        ("Metadata_Plate,Metadata_Well,A\n0001053597806,C05,1\n", r"row 2: well C05 .* is not in"),
        (
            "Metadata_Plate,Metadata_Well,A\n1053597806,B02,1\n",
            r"plate \"1053597806\" is not in.*plates: 0001053597806",
        ),
        ("Metadata_Cell,Metadata_Well,A\n0/B02/1/0,P24,1\n", r"row 2: Metadata_Well \"P24\".*but \"B02\""),
        ("Metadata_Plate,A\n0001053597806,1\n", "no column Metadata_Well"),
        ("Metadata_Cell,name\n0/B02/1/0,x\n", "no column of numbers"),
        ("Metadata_Cell,A\n0/B02/1/0,inf\n", "infinite"),
        ("Metadata_Cell,A,A\n0/B02/1/0,1,2\n", '"A" stands twice'),
        ("", "table"),
    ],
)
def test_a_table_that_is_wrong_says_where_and_what_to_do(tmp_path: Path, real: Cells, rows: str, message: str) -> None:
    file = tmp_path / "features.csv"
    file.write_text(rows)
    with pytest.raises(ManifestError, match=message):
        profiled(file, real)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path, real: Cells) -> None:
    np.save(tmp_path / "e.npy", np.array([[object()]], dtype=object), allow_pickle=True)
    with pytest.raises(ManifestError, match="no array of numbers"):
        read_features(tmp_path / "e.npy", cells=real)


# --- AnnData


def test_counts_and_texts_are_the_store_s_exactly(tmp_path: Path, cells: Cells, measured: pd.DataFrame) -> None:
    write_anndata(tmp_path / "c.h5ad", cells, measured, with_images=True, provenance={"to": "anndata"})
    found = anndata.read_h5ad(tmp_path / "c.h5ad")
    assert found.obsm["images"].dtype == np.uint16
    assert np.array_equal(found.obsm["images"], cells.counts(np.arange(len(cells))))
    assert np.array_equal(found.obsm["masks"], cells.masks(np.arange(len(cells))))
    for column in cells.obs.filter(regex="^Metadata_"):
        assert list(found.obs[column].astype(str)) == list(cells.obs[column]), column
    assert np.array_equal(found.X, measured.to_numpy(), equal_nan=True)
    assert list(found.var_names) == list(measured.columns)
    assert found.var["channel"]["Nuclei_Intensity_MeanIntensity_Mito"] == "Mito"
    assert list(found.uns["cellbridge"]["channels"]) == list(CHANNELS)
    # without images the rows of the stores that it names
    for index in (0, 40, len(cells) - 1):
        store = open_store(Path(found.uns["cellbridge"]["stores"][found.obs["Image_Store"].iloc[index]]))
        assert np.array_equal(store.counts([found.obs["Image_Row"].iloc[index]])[0], found.obsm["images"][index])


def test_a_file_without_images_is_small_and_evaluate_reads_one_with_them(tmp_path: Path, real: Cells) -> None:
    values = measured_intensities(real)
    for name in ("with", "without"):
        write_anndata(tmp_path / f"{name}.h5ad", real, values, with_images=name == "with", provenance={})
    assert not anndata.read_h5ad(tmp_path / "without.h5ad").obsm
    read = read_array_file(tmp_path / "with.h5ad", Form(channels=CHANNELS))
    assert np.array_equal(read.values, real.counts(np.arange(len(real))))
    assert set(read.conditions) == {"DMSO", "NA@1.5", "null@1.5"}
    assert made_here(tmp_path / "with.h5ad")
    anndata.AnnData(values.to_numpy()).write_h5ad(tmp_path / "other.h5ad")
    assert not made_here(tmp_path / "other.h5ad")
    (tmp_path / "text.h5ad").write_text("no")
    assert not made_here(tmp_path / "text.h5ad")


def test_stores_that_do_not_fit_together_are_refused(stores: Path, tmp_path: Path) -> None:
    from small_stores import write_real

    write_real(tmp_path / "twelve.zarr", full_scale=4095)
    real = open_store(stores / "real.zarr")
    with pytest.raises(StoreError, match="full_scale 4095, but 65535"):
        gather_cells([real, open_store(tmp_path / "twelve.zarr")])
    ddib = open_store(stores / "ddib.zarr")
    with pytest.raises(StoreError, match="is there twice"):
        gather_cells([real, ddib, ddib])
