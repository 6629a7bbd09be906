"""Real plates through `prepare`, as published: what CellProfiler counted, what biologists knew."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from cellbridge.data.store import Store, open_store
from cellbridge.settings import validate
from cellbridge.stages.prepare import Config, run

MANIFESTS = Path(__file__).parents[2] / "data_manifests"
FIVE = ["AGP", "DNA", "ER", "Mito", "RNA"]


def prepare_planes(
    folder: Path, root: Path, *, manifest: dict[str, Any], **settings: Any
) -> tuple[dict[str, Any], Store]:
    """Prepare what the table metadata.csv of a folder of real fields lists."""
    described = {"name": "real", "licence": "see the data", "citation": "see the data", "kind": "planes"}
    columns = {"channel": "channel_name", "Metadata_Compound": "condition"}
    described |= {"tables": ["metadata.csv"], "columns": columns, "nucleus_channel": "DNA", **manifest}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(described))
    values = {"manifest": str(folder), "root": str(root), "intensity_reference": "all", "workers": 1, **settings}
    summary = run(validate(Config, values, source="test"), out=folder / "s.zarr")
    return summary, open_store(folder / "s.zarr")


def counted(summary: dict[str, Any]) -> int:
    """Nuclei that were found, whether their crops are stored or not."""
    return int(summary["cells"]) + sum(summary["rejected"].values())


def test_jump_sites_of_a_zarr_array_become_cells_of_five_stains(real_data: Path, tmp_path: Path) -> None:
    only = {"only": ["Metadata_dataset=cpg0016-jump"], "channels": FIVE, "cell_channel": "AGP"}
    root = real_data / "cellpainting_5ch"
    summary, store = prepare_planes(tmp_path, root, manifest=only, crop_px=96, size_px=64)
    assert summary["channels"] == FIVE
    assert set(summary["cells_by_condition"]) == {"RAB30_ORF", "RAB30_CRISPR"}
    assert summary["cells"] >= 25
    assert summary["without_mask"] == 0
    assert store.info.intensity_reference == "all"
    images = store.images(np.arange(store.info.n_cells))
    assert np.abs(images).max() <= 1
    assert (images.std(axis=(0, 2, 3)) > 0.05).all()


def test_a_field_of_five_stains_leaves_its_brightfield_out(real_data: Path, tmp_path: Path) -> None:
    manifest = {
        "only": ["Metadata_dataset=WayScience pediatric_cancer_atlas pilot"],
        "channels": ["Brightfield", *FIVE],
        "leave_out": ["Brightfield"],
        "cell_channel": "AGP",
    }
    root = real_data / "cellpainting_5ch"
    summary, store = prepare_planes(tmp_path, root, manifest=manifest, crop_px=160, size_px=80)
    assert summary["channels_left_out"] == ["Brightfield"]
    assert store.info.channels == tuple(FIVE)
    assert summary["cells"] >= 20
    # CellProfiler, which leaves out nuclei at the border, counted 29 cells.
    assert counted(summary) >= 29


def test_schwann_fields_keep_their_nuclei_with_one_set_of_parameters(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "nf1_schwann_3ch"
    manifest = {"channels": ["DNA", "ER", "Actin"], "cell_channel": "Actin"}
    summary, store = prepare_planes(tmp_path, root, manifest=manifest, border="reflect", crop_px=128, size_px=64)
    expected = pd.read_csv(root / "cellprofiler_counts.csv").set_index("well")["Image_Count_Nuclei"]
    found = store.obs["Metadata_Well"].value_counts()
    # A nucleus of implausible size is counted, not stored; those at the border are in neither count.
    assert set(summary["rejected"]) == {"border"}
    for well, count in expected.items():
        assert abs(found[f"{well[0]}{int(well[1:]):02d}"] - count) <= 1


@pytest.fixture(scope="module")
def translocation(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("bbbc013") / "s.zarr"
    values = {"manifest": str(MANIFESTS / "bbbc013"), "root": str(real_data / "bbbc013_fields"), "workers": 1}
    values |= {"crop_px": 48, "size_px": 48, "border": "reflect", "illumination": "none"}
    run(validate(Config, values, source="test"), out=out)
    return open_store(out)


def log2_ratio(store: Store) -> pd.Series:
    """Per well, log2 of FKHR-EGFP in the nucleus over that in the ring around it, above the well's background; medians over cells."""
    rows = np.arange(store.info.n_cells)
    counts = store.counts(rows)[:, store.info.channels.index("FKHR-EGFP")].astype(np.float64)
    masks = store.masks(rows)
    assert masks is not None
    wells = store.obs["Metadata_Well"].to_numpy()
    found = {}
    for well in sorted(set(wells)):
        image, mask = counts[wells == well], masks[wells == well]
        image = image - np.percentile(image, 1)
        parts = (mask == 2, mask == 1)
        nucleus, ring = (np.median((image * part).sum(axis=(1, 2)) / part.sum(axis=(1, 2))) for part in parts)
        found[well] = np.log2(nucleus / ring)
    return pd.Series(found)


@pytest.mark.slow  # 46 fields, half a minute
def test_the_marker_moves_into_the_nucleus_with_the_dose_of_both_compounds(translocation: Store) -> None:
    obs = translocation.obs.drop_duplicates("Metadata_Well").set_index("Metadata_Well")
    table = pd.DataFrame({"ratio": log2_ratio(translocation), "compound": obs["Metadata_Compound"]})
    table["dose"] = pd.to_numeric(obs["Metadata_Concentration"], errors="coerce")
    control = table.loc[table["compound"] == translocation.info.control, "ratio"]
    assert control.mean() == pytest.approx(-0.4, abs=0.15)
    doses = table[table["compound"] != translocation.info.control].dropna()
    assert {name: len(part["dose"].unique()) for name, part in doses.groupby("compound")} == {
        "LY294002": 9,
        "wortmannin": 10,
    }
    for _, part in doses.groupby("compound"):
        by_dose = part.groupby("dose")["ratio"].mean()
        assert spearmanr(by_dose.index, by_dose).statistic > 0.85
        assert by_dose.iloc[0] < 0.2
        assert by_dose.iloc[-1] > 2
        assert by_dose.iloc[-3:].min() > by_dose.iloc[:4].max() + 1
    every = translocation.obs.groupby("Metadata_Well").size()
    assert every.min() >= 50
