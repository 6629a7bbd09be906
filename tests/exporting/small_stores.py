"""Two stores to export: real cells under awkward names, and their control cells translated to two conditions."""

from pathlib import Path

import numpy as np
import pandas as pd

from cellbridge.data.intensity import IntensityMaps, fit_intensity
from cellbridge.data.store import StoreInfo, write_store

CHANNELS = ("DNA", "ER", "Mito")
PLATES = ("0001053597806", '=HYPERLINK("http://x","y")/../é')
WELLS = {"B02": "DMSO", "B03": "NA", "P24": "null"}
SITES, PER_SITE, SIZE = 2, 2, 8
PIXEL_UM = 0.65


def real_table() -> pd.DataFrame:
    """Return the table of the real cells: 2 plates × 3 wells × 2 sites × 2 cells."""
    rows = [
        {
            "Metadata_Cell": f"{PLATES.index(plate)}/{well}/{site}/{number}",
            "Metadata_Plate": plate,
            "Metadata_Well": well,
            "Metadata_Site": str(site),
            "Metadata_Compound": compound,
            "Metadata_Concentration": "" if compound == "DMSO" else "1.50",
            "Metadata_pert_type": "negcon" if compound == "DMSO" else "trt",
            "Metadata_Split": "train" if plate == PLATES[0] else "test",
            "Location_Center_X": 10.0 * number,
        }
        for plate in PLATES
        for well, compound in WELLS.items()
        for site in range(1, SITES + 1)
        for number in range(PER_SITE)
    ]
    return pd.DataFrame(rows)


def write_real(path: Path, *, seed: int = 0, full_scale: int = 65535) -> StoreInfo:
    """Write the real cells; compound NA is brighter in ER, and no pixel of any cell is zero."""
    obs = real_table()
    rng = np.random.default_rng(seed)
    counts = rng.integers(200, 4000, (len(obs), len(CHANNELS), SIZE, SIZE))
    counts[(obs.Metadata_Compound == "NA").to_numpy(), 1] *= 10
    counts[0, 0, 0, 0] = full_scale
    counts = counts.clip(0, full_scale).astype(np.uint16)
    masks = np.ones((len(obs), SIZE, SIZE), np.uint8)
    masks[:, 2:5, 2:5] = 2
    masks[:, 0] = 0
    return write_store(
        path, obs=obs, counts=counts, masks=masks, intensity=_maps(obs, counts, full_scale), **_head(full_scale)
    )


def write_translated(
    path: Path, *, model: str = "ddib", targets: tuple[str, ...] = ("NA", "null"), seed: int = 1
) -> StoreInfo:
    """Write translations of every control cell to each target, with the wells and masks of their sources."""
    real = real_table()
    source = real[real.Metadata_Compound == "DMSO"]
    parts = []
    for target in targets:
        part = source.assign(
            Metadata_SourceCell=source.Metadata_Cell,
            Metadata_Cell=source.Metadata_Cell + f">{target}@1.5",
            Metadata_Compound=target,
            Metadata_Concentration="1.5",
            Metadata_pert_type="trt",
            Metadata_Origin="generated",
            Metadata_SourceCondition="DMSO",
            Metadata_TargetCondition=f"{target}@1.5",
            Metadata_Model=model,
            Metadata_Sample="0",
        )
        parts.append(part)
    obs = pd.concat(parts, ignore_index=True)
    counts = np.random.default_rng(seed).integers(1, 4000, (len(obs), len(CHANNELS), SIZE, SIZE)).astype(np.uint16)
    masks = np.full((len(obs), SIZE, SIZE), 2, np.uint8)
    return write_store(path, obs=obs, counts=counts, masks=masks, intensity=_maps(obs, counts, 65535), **_head(65535))


def _maps(obs: pd.DataFrame, counts: np.ndarray, full_scale: int) -> IntensityMaps:
    of_plate = {plate: counts[(obs.Metadata_Plate == plate).to_numpy()] for plate in PLATES}
    return fit_intensity(of_plate, channels=list(CHANNELS), full_scale=full_scale)


def _head(full_scale: int) -> dict:
    return {"channels": CHANNELS, "full_scale": full_scale, "size_px": SIZE, "pixel_um": PIXEL_UM, "control": "DMSO"}
