"""Resident cells and the order they are seen in: closed forms of the noise and flips, and invariance to resuming."""

import shutil

import numpy as np
import pytest
import torch

from cellbridge.data import augment
from cellbridge.data.dataset import BatchSource, CellData
from cellbridge.data.held import InFiles, InMemory, free_bytes, hold
from cellbridge.data.intensity import IntensityMaps, fit_intensity
from cellbridge.data.store import open_store, write_store
from cellbridge.errors import ConfigError, StoreError
from cellbridge.runtime import generator

N, PLATES = 20, ["A", "B"]


def make(*, dtype: type = np.uint16) -> tuple[np.ndarray, list[str], IntensityMaps]:
    top = 250 if dtype is np.uint8 else 60000
    counts = (np.random.default_rng(0).gamma(2.0, 0.1, (N, 3, 8, 8)).clip(0, 1) * top).astype(dtype)
    plates = [PLATES[i % 2] for i in range(N)]
    full_scale = 255 if dtype is np.uint8 else 65535
    control = {plate: counts[i::2] for i, plate in enumerate(PLATES)}
    return counts, plates, fit_intensity(control, channels=["DNA", "ER", "AGP"], full_scale=full_scale)


def data_of(dtype: type = np.uint16) -> CellData:
    counts, plates, maps = make(dtype=dtype)
    return CellData(counts, plates=plates, intensity=maps, labels=torch.arange(N))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_without_noise_the_images_are_those_of_the_map(dtype):
    counts, plates, maps = make(dtype=dtype)
    rows = torch.tensor([3, 0, 19, 3])
    found = data_of(dtype).batch(rows)
    expected = maps.forward(torch.from_numpy(counts[rows].astype(np.int32)), [plates[row] for row in rows])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    import pandas as pd

    folder = tmp_path_factory.mktemp("dataset")
    counts, plates, maps = make()
    obs = pd.DataFrame({"Metadata_Cell": [str(i) for i in range(N)], "Metadata_Plate": plates})
    for name in ("Well", "Site", "Compound", "Concentration", "pert_type", "Split"):
        obs[f"Metadata_{name}"] = "DMSO" if name == "Compound" else ""
    shape = {"channels": ["DNA", "ER", "AGP"], "full_scale": 65535, "size_px": 8, "pixel_um": None, "control": "DMSO"}
    write_store(folder / "s", obs=obs, counts=counts, intensity=maps, **shape)
    return open_store(folder / "s")


def test_loading_from_a_store_gives_its_images(store):
    rows = np.array([17, 2, 5])
    data = CellData.load(store, rows, labels=torch.tensor([0, 1, 1]))
    assert len(data) == 3
    torch.testing.assert_close(data.batch(torch.arange(3)), torch.from_numpy(store.images(rows)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rows", [np.arange(N), np.array([17, 2, 5, 2])])
def test_batches_are_the_same_wherever_the_counts_lie(store, rows):
    sources = [
        BatchSource(CellData.load(store, rows, labels=torch.arange(len(rows)), place=place), batch_size=3, seed=1)
        for place in ("memory", "files", "auto")
    ]
    for step in range(4):
        first, *others = (source(step) for source in sources)
        for other in others:
            assert torch.equal(first.images, other.images)
            assert torch.equal(first.labels, other.labels)


def test_counts_stay_in_files_where_half_of_the_free_memory_is_too_little(store, monkeypatch):
    rows = np.arange(N)
    needed = N * 3 * 8 * 8 * 2
    for free, kind in ((2 * needed, InMemory), (2 * needed - 2, InFiles)):
        monkeypatch.setattr("cellbridge.data.held.free_bytes", lambda free=free: free)
        assert type(hold(store, rows, device=torch.device("cpu"))) is kind
    assert type(hold(store, rows, device=torch.device("cpu"), place="memory")) is InMemory
    assert free_bytes() > 0
    with pytest.raises(StoreError, match="no cell is left"):
        hold(store, rows[:0], device=torch.device("cpu"))


def test_files_are_read_ahead_and_a_hint_that_was_wrong_changes_nothing(store, monkeypatch):
    held = hold(store, np.arange(N), device=torch.device("cpu"), place="files")
    asked = []
    read = held._reader.read
    monkeypatch.setattr(held._reader, "read", lambda rows: asked.append(rows.tolist()) or read(rows))
    expected = store.counts(np.arange(N)).astype(np.int32)
    for hint, rows in (([3, 1], [3, 1]), ([5], [0, 2]), (None, [4])):
        if hint is not None:
            held.expect(torch.tensor(hint))
        found = held.gather(torch.tensor(rows)).view(torch.uint16).numpy()
        assert np.array_equal(found, expected[rows])
    assert asked == [[3, 1], [5], [0, 2], [4]]


def test_a_hint_of_another_thread_is_never_taken_for_ones_own_rows(store, monkeypatch):
    held = hold(store, np.arange(N), device=torch.device("cpu"), place="files")
    expected = store.counts(np.arange(N)).astype(np.int32)
    equal = torch.equal

    def interrupted(first: torch.Tensor, second: torch.Tensor) -> bool:
        held.expect(torch.tensor([7, 8]))
        return equal(first, second)

    held.expect(torch.tensor([3, 1]))
    monkeypatch.setattr(torch, "equal", interrupted)
    assert np.array_equal(held.gather(torch.tensor([3, 1])).view(torch.uint16).numpy(), expected[[3, 1]])


def test_data_and_their_batches_lie_on_one_device_however_it_is_called():
    counts, plates, maps = make()
    named = {
        name: CellData(counts, plates=plates, intensity=maps, labels=torch.arange(N), device=name)
        for name in ("cpu", "cpu:0")
    }
    for data in named.values():  # a GPU called `cuda`, whose tensors say `cuda:0`, was taken for two devices
        assert data.device == data._held.device == data.batch(torch.tensor([2, 0])).device


def test_a_shard_that_changes_under_a_training_is_an_error_and_no_other_pixels(store, tmp_path):
    shutil.copytree(store.info.path, tmp_path / "s")
    copied = open_store(tmp_path / "s")
    data = CellData.load(copied, np.arange(N), labels=torch.zeros(N, dtype=torch.int64), place="files")
    data.batch(torch.arange(3))
    shard = tmp_path / "s/images/c/0/0/0/0"
    with shard.open("r+b") as stream:
        stream.seek(20)
        stream.write(b"\xff\x00\xff")
    with pytest.raises(StoreError, match="damaged"):
        data.batch(torch.arange(3))
    with shard.open("r+b") as stream:
        stream.truncate(30)
    with pytest.raises(StoreError, match="damaged"):
        data.batch(torch.arange(N))


def test_noise_and_flips_keep_every_pixel_inside_its_bin():
    counts, plates, maps = make()
    rows = torch.arange(N)
    images = data_of().batch(rows, generator("cpu", "test", 1))
    noisy = maps.inverse(images, plates).reshape(N, 3, -1).sort().values
    sound = torch.from_numpy(counts.astype(np.int64)).reshape(N, 3, -1).sort().values
    # Half a count and, at the top of the range, what float32 resolves there.
    assert float((noisy - sound).abs().max()) < 0.6
    assert float((noisy.round() == sound).double().mean()) > 0.99
    assert float(images.abs().max()) <= 1.0


@pytest.mark.parametrize("full_scale", [255, 65535])
def test_dequantised_counts_are_uniform_in_the_bin_and_never_leave_the_range(full_scale):
    values = torch.tensor([0.0, 1.0, 100.0, full_scale - 1.0, full_scale]).repeat(20000, 1)
    noisy = augment.dequantise(values.clone(), full_scale=full_scale, generator=generator("cpu", "test", 2))
    assert torch.equal(noisy.round(), values)
    assert float(noisy.min()) >= 0
    assert float(noisy.max()) <= full_scale
    spread = (noisy - values)[:, 1:3].double()
    # Uniform of width 0.99: mean 0, variance 0.99^2 / 12; 40,000 draws give the mean to 0.0014 (1 s.e.).
    assert abs(float(spread.mean())) < 0.006
    assert float(spread.var()) == pytest.approx(0.99**2 / 12, rel=0.02)


def test_dihedral_elements_are_the_eight_symmetries_of_the_square():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    seen = [augment.dihedral(image, torch.tensor([element])) for element in range(8)]
    expected = [torch.rot90(base, k, (-2, -1)) for base in (image, image.flip(-1)) for k in range(4)]
    assert {tuple(x.flatten().tolist()) for x in seen} == {tuple(x.flatten().tolist()) for x in expected}
    assert torch.equal(seen[0], image)


def test_each_image_is_turned_by_its_own_element_whatever_its_batch():
    images = torch.rand(16, 3, 5, 5)
    elements = augment.draw_dihedral(16, generator=generator("cpu", "test", 3))
    together = augment.dihedral(images, elements)
    alone = torch.cat([augment.dihedral(images[i : i + 1], elements[i : i + 1]) for i in range(16)])
    assert torch.equal(together, alone)


def test_an_epoch_sees_every_cell_once_and_batches_run_on_across_its_end():
    source = BatchSource(data_of(), batch_size=6, seed=0)
    order = torch.cat([source.rows(step) for step in range(10)])
    epochs = order.reshape(3, N)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(N))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert sorted(BatchSource(data_of(), batch_size=2 * N, seed=0).rows(0).tolist()) == sorted([*range(N)] * 2)


@pytest.mark.parametrize("sampling", [None, torch.arange(N).float()])
def test_a_resumed_source_is_bit_equal_in_any_order_of_asking(sampling):
    ran_through = BatchSource(data_of(), batch_size=6, seed=7, sampling=sampling)
    first = [ran_through(step) for step in range(9)]
    for step in (8, 3, 4):
        resumed = BatchSource(data_of(), batch_size=6, seed=7, sampling=sampling)(step)
        for name in ("images", "labels", "weights", "rows"):
            assert torch.equal(getattr(first[step], name), getattr(resumed, name))
    other = BatchSource(data_of(), batch_size=6, seed=8, sampling=sampling)(3)
    assert not torch.equal(other.images, first[3].images)


def test_accumulation_changes_nothing():
    whole = BatchSource(data_of(), batch_size=6, seed=1)(5)
    source = BatchSource(data_of(), batch_size=6, accumulation=3, seed=1)
    parts = [source(5, micro) for micro in range(3)]
    assert [len(part.images) for part in parts] == [2, 2, 2]
    for name in ("images", "labels", "weights", "rows"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_labels_and_weights_belong_to_their_cells():
    weights = torch.linspace(0.5, 2.0, N)
    batch = BatchSource(data_of(), batch_size=6, seed=1, weights=weights, augment=False)(2)
    assert torch.equal(batch.labels, batch.rows)
    assert torch.equal(batch.weights, weights[batch.rows])
    torch.testing.assert_close(batch.images, data_of().batch(batch.rows), rtol=0, atol=0)


def test_sampling_draws_cells_in_proportion_and_never_those_of_weight_zero():
    sampling = torch.zeros(N)
    sampling[[2, 5, 11]] = torch.tensor([1.0, 2.0, 5.0])
    source = BatchSource(data_of(), batch_size=400, seed=0, sampling=sampling)
    n = torch.bincount(torch.cat([source.rows(step) for step in range(20)]), minlength=N)
    assert n[sampling == 0].sum() == 0
    expected = torch.tensor([1000.0, 2000.0, 5000.0])
    chi2 = float(((n[[2, 5, 11]] - expected) ** 2 / expected).sum())
    assert chi2 < 18.4, "p = 1e-4 for two degrees of freedom"


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    BatchSource(data_of(), batch_size=6, seed=0)(0)
    BatchSource(data_of(), batch_size=6, seed=0, sampling=torch.ones(N))(0)
    assert torch.equal(before, torch.get_rng_state())


def test_misfits_are_refused():
    counts, plates, maps = make()
    with pytest.raises(StoreError, match="expected uint8 or uint16"):
        CellData(counts.astype(np.float32), plates=plates, intensity=maps, labels=torch.arange(N))
    with pytest.raises(StoreError, match="20 cells, 19 labels and 20 plates"):
        CellData(counts, plates=plates, intensity=maps, labels=torch.arange(N - 1))
    with pytest.raises(ConfigError, match="batch_size 6 is not a positive multiple of accumulation 4"):
        BatchSource(data_of(), batch_size=6, accumulation=4, seed=0)
    with pytest.raises(ConfigError, match="sampling: expected 20 numbers"):
        BatchSource(data_of(), batch_size=6, seed=0, sampling=torch.zeros(N))
