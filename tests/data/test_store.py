"""The store: what goes in comes out, damage and absence raise, nothing half-written has the name, same inputs same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import weakref
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import zarr

from cellbridge.conditions import Condition
from cellbridge.data import shards
from cellbridge.data.intensity import fit_intensity
from cellbridge.data.store import Store, condition_of, describe, open_store, write_store
from cellbridge.errors import ConditionError, StoreError

N = 23
CHANNELS = ["DNA", "ER"]
NAMES = ["DMSO", "NA", "None", "null", "nan", "µ-"]
PLATES = ["0001053597806", "NA"]


def contents(n: int = N, *, dtype: type = np.uint16) -> dict:
    rng = np.random.default_rng(0)
    top = 250 if dtype is np.uint8 else 40000
    counts = (rng.gamma(2.0, 0.1, (n, 2, 8, 8)).clip(0, 1) * top).astype(dtype)
    counts[3] = 0
    compounds = np.array(NAMES, dtype=object)[np.arange(n) % len(NAMES)]
    obs = pd.DataFrame(
        {
            "Metadata_Cell": [f"c{i:03d}" for i in range(n)],
            "Metadata_Plate": [PLATES[2 * i // n] for i in range(n)],
            "Metadata_Well": "B03",
            "Metadata_Site": "1",
            "Metadata_Compound": compounds,
            "Metadata_Concentration": ["0.0" if c == "DMSO" else "" if c == "nan" else "1.50" for c in compounds],
            "Metadata_pert_type": np.where(compounds == "DMSO", "negcon", "trt"),
            "Metadata_Split": [["train", "test"][2 * i // n] for i in range(n)],
            "Metadata_InChIKey": "null",
            "Location_Center_X": rng.random(n) * 500,
            "Truth_Responder": np.arange(n) % 2,
        }
    )
    full_scale = 255 if dtype is np.uint8 else 65535
    control = {plate: counts[(obs.Metadata_Plate == plate).to_numpy()] for plate in PLATES}
    maps = fit_intensity(control, channels=CHANNELS, full_scale=full_scale)
    return {
        "obs": obs,
        "counts": counts,
        "channels": CHANNELS,
        "full_scale": full_scale,
        "size_px": 8,
        "pixel_um": 1.2,
        "control": "DMSO",
        "intensity": maps,
        "masks": rng.integers(0, 3, (n, 8, 8)).astype(np.uint8),
        "attributes": {"aliases": {"JCP2022_1": "NA"}, "rejected": {"at the border": 4}},
    }


@pytest.fixture(autouse=True)
def _several_shards(monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_CELLS", 8)


@pytest.fixture
def given() -> dict:
    return contents()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MAX_SHARD_CELLS", 8)
        path = tmp_path_factory.mktemp("written") / "cells.zarr"
        write_store(path, **contents())
    return path


@pytest.fixture
def path(tmp_path, written) -> Path:
    shutil.copytree(written, tmp_path / "cells.zarr")
    return tmp_path / "cells.zarr"


def read_all(path: Path) -> Store:
    store = open_store(path)
    rows = np.arange(store.info.n_cells)
    store.counts(rows)
    store.masks(rows)
    return store


def test_what_was_written_is_read_in_any_order(path, given):
    store = open_store(path)
    for rows in (np.arange(N), np.array([22, 0, 7, 8, 7]), np.array([], dtype=int), [3]):
        assert np.array_equal(store.counts(rows), given["counts"][rows])
        assert np.array_equal(store.masks(rows), given["masks"][rows])
    assert store.counts([0]).dtype == np.uint16
    assert store.x_T([0]) is None


def test_zarr_and_anndata_read_the_same(path, given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(path, mode="r")
        table = anndata.read_zarr(path / "table")
    assert np.array_equal(group["images"][:], given["counts"])
    assert np.array_equal(group["masks"][:], given["masks"])
    assert list(table.obs["Metadata_Compound"]) == list(given["obs"]["Metadata_Compound"])
    assert list(table.obs_names) == list(given["obs"]["Metadata_Cell"])


def test_strings_that_look_like_missing_values_or_numbers_stay_strings(path, given):
    obs = open_store(path).obs
    pd.testing.assert_frame_equal(obs.reset_index(drop=True), given["obs"])
    assert list(obs.index) == list(given["obs"]["Metadata_Cell"])
    assert all(type(value) is str for name in obs.columns[:9] for value in obs[name])


def test_images_are_the_plate_s_map_of_the_counts(path, given):
    store = open_store(path)
    rows = np.array([20, 1, 12])
    plates = list(given["obs"]["Metadata_Plate"].iloc[rows])
    expected = given["intensity"].forward(torch.from_numpy(given["counts"][rows].astype(np.int32)), plates)
    assert np.array_equal(store.images(rows), expected.numpy())
    back, _ = store.intensity.to_counts(torch.from_numpy(store.images(rows)), plates)
    assert np.array_equal(back.numpy(), given["counts"][rows])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("item", [(3, 16, 16), (12, 12)])
def test_shards_are_byte_for_byte_those_of_zarr(tmp_path, dtype, item):
    cells = np.random.default_rng(0).gamma(2.0, 30.0, (N, *item)).astype(dtype)
    cells[3] = 0
    made = [zarr.create_group(tmp_path / name) for name in ("ours", "theirs")]
    layout = {
        "shape": cells.shape,
        "dtype": cells.dtype,
        "shard": 8,
        "dimensions": ["cell", "a", "b", "c"][: cells.ndim],
    }
    with zarr.config.set({"array.write_empty_chunks": True}):
        ours, theirs = (shards.create(group, "x", **layout) for group in made)
        for start in range(0, N, 8):
            theirs[start : start + 8] = cells[start : start + 8]
    batches = [shards.encode(cells[:5]), cells[5:9], shards.encode(cells[9:20]), cells[20:]]
    bounds = list(shards.written(ours, tmp_path / "ours/x", iter(batches), name="x"))
    written = [
        {f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).rglob("c/*/**/*") if f.is_file()}
        for n in ("ours", "theirs")
    ]
    assert len(written[0]) == 3
    assert written[0] == written[1]
    assert np.array_equal(ours[:], cells)
    for number, (low, high) in enumerate(bounds):
        some = cells[8 * number : 8 * number + 8]
        assert low <= some.min() <= some.max() <= high
    assert np.array_equal(shards.decode(shards.encode(cells)), cells)


def test_description_holds_what_the_store_is_about(path):
    info = describe(path)
    assert (info.channels, info.size_px, info.pixel_um, info.full_scale) == (("DNA", "ER"), 8, 1.2, 65535)
    assert info.conditions[0] == Condition("DMSO")
    assert set(info.conditions) == {Condition("DMSO"), Condition("nan")} | {
        Condition(name, 1.5) for name in ("NA", "None", "null", "µ-")
    }
    assert sum(info.n_by_condition.values()) == info.n_cells == N
    assert info.plates == ("0001053597806", "NA")
    assert info.aliases == {"JCP2022_1": "NA"}
    assert info.attributes["rejected"] == {"at the border": 4}
    assert info.intensity_reference == "control"


def test_description_needs_nothing_but_json(path):
    heavy = ("torch", "zarr", "anndata", "pandas", "numpy")
    code = (
        "import sys; from pathlib import Path; from cellbridge.data.store import describe; import cellbridge.data.splits;"
        f"print(describe(Path(sys.argv[1])).n_cells, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(N), "[]"]


def test_selection_combines_split_condition_and_plate(path, given):
    store, obs = open_store(path), given["obs"]
    assert store.select().tolist() == list(range(N))
    chosen = store.select(split="test", conditions=["NA@1.5", "DMSO"], plates=["NA"])
    expected = obs[
        (obs.Metadata_Split == "test") & obs.Metadata_Compound.isin(["NA", "DMSO"]) & (obs.Metadata_Plate == "NA")
    ]
    assert chosen.tolist() == list(expected.index)
    assert set(store.condition_names[store.select(conditions="DMSO")]) == {"DMSO"}
    with pytest.raises(ConditionError, match=r'condition "NA@15" is not in the store. Did you mean "NA@1.5"'):
        store.select(conditions=["NA@15"])
    with pytest.raises(StoreError, match=r'plate "1053597806" is not in the store. Did you mean "0001053597806"'):
        store.select(plates=["1053597806"])


def test_control_has_no_dose_and_a_name_that_reads_back_as_another_is_refused():
    assert condition_of("DMSO", "0.1", control="DMSO") == Condition("DMSO")
    assert condition_of("taxol", "0.30", control="DMSO") == Condition("taxol", 0.3)
    assert condition_of("taxol", "3.3333333", control="DMSO") == Condition("taxol", 3.3333333)
    for text in ("high", "nan", "inf", "-1"):
        with pytest.raises(StoreError, match="is not a number"):
            condition_of("taxol", text, control="DMSO")
    with pytest.raises(StoreError, match="would be read back as"):
        condition_of("taxol@3", "", control="DMSO")


def test_same_inputs_in_other_batches_give_the_same_bytes(tmp_path, given, path):
    again = {
        **given,
        "counts": (given["counts"][i : i + 5] for i in range(0, N, 5)),
        "masks": (mask[None] for mask in given["masks"]),
    }
    write_store(tmp_path / "again.zarr", **again)
    first, second = (
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (path, tmp_path / "again.zarr")
    )
    assert first == second


def test_one_batch_at_a_time_is_in_memory_and_lies_on_disk_before_the_next_shard(tmp_path, given):
    alive, begun = weakref.WeakSet(), []

    def batches():
        for i in range(N):
            assert not alive
            begun.append(len(list(tmp_path.glob(".cells.zarr.*.tmp/images/c/*/0/0/0"))))
            alive.add(batch := Counts(given["counts"][i : i + 1]))
            yield batch
            del batch

    write_store(tmp_path / "cells.zarr", **{**given, "counts": batches()})
    assert begun == [i // 8 + 1 for i in range(N)]


class Counts(np.ndarray):
    """Counts whose end a weak set sees."""

    def __new__(cls, counts):
        return counts.view(cls)

    __hash__ = object.__hash__


def test_eight_bits_and_noise_survive(tmp_path):
    given = contents(dtype=np.uint8)
    x_T = np.random.default_rng(1).standard_normal(given["counts"].shape).astype(np.float32)
    given["counts"] = given["counts"].astype(np.uint16)
    write_store(tmp_path / "cells.zarr", **given, x_T=x_T)
    store = open_store(tmp_path / "cells.zarr")
    assert store.counts([5]).dtype == np.uint8
    assert np.array_equal(store.counts(np.arange(N)), given["counts"])
    assert np.array_equal(store.x_T([9, 4]), x_T[[9, 4]])


def data_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json")


def test_every_flipped_byte_raises(path):
    rng = np.random.default_rng(0)
    files = [file for file in data_files(path) if "table" not in file.parts or "obs" in file.parts]
    for file in files:
        sound = file.read_bytes()
        for position in rng.integers(0, len(sound), 2):
            damaged = bytearray(sound)
            damaged[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            with pytest.raises(StoreError, match=r"damaged|changed"):
                read_all(path)
        file.write_bytes(sound)
    read_all(path)


def test_every_missing_or_shortened_file_raises(path):
    for file in data_files(path):
        sound = file.read_bytes()
        for stump in (None, b"", sound[:-1]):
            file.unlink()
            if stump is not None:
                file.write_bytes(stump)
            with pytest.raises(StoreError, match=r"is missing|was changed"):
                open_store(path)
            file.write_bytes(sound)
    read_all(path)


def test_shard_that_shrinks_after_opening_raises(path):
    store = open_store(path)
    shard = path / "images" / "c" / "1" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:40])
    assert store.counts([0, 23 - 1]).shape == (2, 2, 8, 8)
    with pytest.raises(StoreError, match="holds cells 8 to 15"):
        store.counts([9])
    shard.unlink()
    with pytest.raises(StoreError, match="holds cells 8 to 15"):
        store.counts([9])


def test_store_without_a_manifest_or_of_another_kind_is_refused(tmp_path, path):
    with pytest.raises(StoreError, match="no such store"):
        describe(tmp_path / "other.zarr")
    (path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="incomplete"):
        describe(path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(StoreError, match="is not a store"):
        describe(tmp_path / "model")


def test_failure_midway_leaves_nothing_and_an_existing_store_as_it_was(tmp_path, given, path):
    def fails():
        yield given["counts"][:9]
        raise OSError("camera unplugged")

    with pytest.raises(OSError, match="camera unplugged"):
        write_store(tmp_path / "new.zarr", **{**given, "counts": fails()})
    with pytest.raises(OSError, match="camera unplugged"):
        write_store(path, **{**given, "counts": fails()}, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells.zarr"]
    read_all(path)


def test_existing_store_is_replaced_only_when_asked(path, given):
    with pytest.raises(StoreError, match="exists already"):
        write_store(path, **given)
    write_store(path, **{**given, "control": "NA"}, overwrite=True)
    assert describe(path).control == "NA"


def test_misfits_are_refused(tmp_path, given):
    def refused(match, **changes):
        with pytest.raises(StoreError, match=match):
            write_store(tmp_path / "bad.zarr", **{**given, **changes})
        assert not (tmp_path / "bad.zarr").exists()

    obs, counts = given["obs"], given["counts"]
    refused("22 images for 23 rows", counts=counts[:-1])
    refused("24 or more images for 23 rows", counts=np.concatenate([counts, counts[:1]]))
    refused(r"a batch of shape \(23, 1, 8, 8\)", counts=counts[:, :1])
    refused("type float32, expected", counts=counts.astype(np.float32))
    refused("counts from -35253 to 0", counts=-counts.astype(np.int32))
    refused("no column Metadata_Split", obs=obs.drop(columns="Metadata_Split"))
    refused(
        "holds nan in Metadata_Compound", obs=obs.assign(Metadata_Compound=obs.Metadata_Compound.replace("NA", np.nan))
    )
    refused("holds 1 in Metadata_Site", obs=obs.assign(Metadata_Site=1))
    refused('"c000" stands twice', obs=obs.assign(Metadata_Cell="c000"))
    refused('plate "P9" has no intensity map', obs=obs.assign(Metadata_Plate="P9"))
    refused("do not fit the channels", channels=["DNA", "RNA"])
    refused("the table of cells is empty", obs=obs[:0], counts=counts[:0], masks=None)
    refused("attribute plates is the store's own", attributes={"plates": []})
    high = contents(dtype=np.uint8)
    with pytest.raises(StoreError, match="counts from 300 to 300 do not lie in 0 to the full scale 255"):
        write_store(tmp_path / "bad.zarr", **{**high, "counts": np.full((N, 2, 8, 8), 300, np.uint16)})


@pytest.mark.slow
def test_kill_midway_leaves_nothing_under_the_name(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; import test_store as t; from cellbridge.data.store import write_store\n"
        "g = t.contents()\n"
        "def slow():\n"
        "    yield g['counts'][:12]\n"
        "    Path(sys.argv[1], 'halfway').touch(); time.sleep(60)\n"
        "write_store(Path(sys.argv[1]) / 'cells.zarr', **{**g, 'counts': slow()})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "halfway").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "halfway").exists()
    assert not (tmp_path / "cells.zarr").exists()
    write_store(tmp_path / "cells.zarr", **contents())
    read_all(tmp_path / "cells.zarr")
