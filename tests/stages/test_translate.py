"""`translate` by every method, through the command line: one kind of store, draws of a cell, ways to look at, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from known_world import CHANNELS, SIZE, write_study
from PIL import Image

from cellbridge import assembly
from cellbridge.adapters import lora
from cellbridge.assembly.bridges import BridgeCard, build_bridge, publish_bridge
from cellbridge.bridge.linear_guess import Moments
from cellbridge.cli import main
from cellbridge.conditions import Condition
from cellbridge.config import NetworkConfig, ScheduleConfig
from cellbridge.data.store import describe, open_store
from cellbridge.runs import RunDir
from cellbridge.runtime import noise_per_image
from cellbridge.settings import load
from cellbridge.translating.methods import Asked, open_method
from cellbridge.translating.settings import Config
from cellbridge.translating.trajectories import ways_of

NETWORK = NetworkConfig(widths=(8, 8), attention_levels=())
TARGETS = ("shrinker@1", "dimmer@5")
FEW = ["--set", "solver.steps=3"]
FEW_OVER_A_BRIDGE = ["--set", "bridge_solver.steps=3"]


def _base(run: Path) -> Path:
    rows = assembly.base_rows(("DMSO", *TARGETS))
    card = assembly.ModelCard(
        kind="base",
        channels=CHANNELS,
        size_px=SIZE,
        conditions=rows,
        network=NETWORK,
        schedule=ScheduleConfig(),
        plates=("P1", "P2"),
        store_sha256="0",
    )
    network = assembly.build_network(card, seed=0)
    ema = {name: value.detach().clone() for name, value in lora.trainable(network).items()}
    assembly.publish_base(RunDir(run), network, ema=ema, card=card)
    return run


@cache
def _images(store: Path) -> dict[str, torch.Tensor]:
    opened = open_store(store)
    return {name: torch.from_numpy(opened.images(opened.select(conditions=[name]))) for name in ("DMSO", *TARGETS)}


def _bridge(run: Path, store: Path, conditions: tuple[str, ...] = TARGETS, **changed: object) -> Path:
    """Publish a bridge whose network says nothing, so that it is the linear guess of the cells' own moments."""
    images = _images(store)
    pairs = [[images["DMSO"], images[name]] for name in conditions]
    n = len(conditions)
    moments = Moments(
        means=torch.stack([torch.stack([side.mean(0) for side in pair]) for pair in pairs]),
        modes=torch.zeros(0, len(CHANNELS), SIZE, SIZE),
        covariances=torch.zeros(n, 2, 0, 0),
        cross=torch.zeros(n, 0, 0),
        rest=torch.stack([torch.stack([side.var(0).mean((1, 2)) for side in pair]) for pair in pairs]),
        rest_cross=torch.stack([0.5 * pair[1].var(0).mean((1, 2)) for pair in pairs]),
    )
    known = {"channels": CHANNELS, "size_px": SIZE, "control": "DMSO", "reg": (1e-4, 4e-3), "image_std": 0.2}
    known |= {"coupling": "ot", "clock": "endpoint", "plates": ("P1", "P2"), "store_sha256": "0"}
    card = BridgeCard(conditions=conditions, network=NETWORK, schedule=ScheduleConfig(), **{**known, **changed})
    built = build_bridge(card, moments, seed=0)
    ema = {name: value.detach().clone() for name, value in built.network.named_parameters()}
    publish_bridge(RunDir(run), built, ema=ema, card=card)
    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("translations")
    paths = write_study(root, per_well=3)
    return {
        "root": root,
        "store": paths["reference"],
        "base": _base(root / "base"),
        "bridge": _bridge(root / "bridge", paths["reference"]),
    }


def given(study: Mapping[str, Path], method: str) -> list[object]:
    models = ["--bridge", study["bridge"]] if method == "bridge" else ["--base", study["base"], *FEW]
    return ["--store", study["store"], "--method", method, *models]


def translate(study: Mapping[str, Path], out: Path, *more: object, method: str = "bridge", models: bool = True) -> dict:
    """Run `translate` and return its summary."""
    first = given(study, method) if models else ["--store", study["store"], "--method", method]
    first += FEW_OVER_A_BRIDGE if method == "bridge" else []
    printed = StringIO()
    with redirect_stdout(printed):
        code = main([str(part) for part in ("translate", *first, *more, "--json", "--out", out)])
    assert code == 0
    return json.loads(printed.getvalue())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["translate", *(str(part) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


DRAWS = {"bridge": 2, "ddib": 1, "sdedit": 2}
SHOWN = {"bridge": 2, "ddib": 1, "sdedit": 1}
"""Trajectories."""
CELLS = 3


@pytest.fixture(scope="module")
def made(study) -> Mapping[str, tuple[Path, dict]]:
    """Three cells by every method, twice where chance has a part in it, with trajectories."""
    found = {}
    for method, draws in DRAWS.items():
        out = study["root"] / f"by {method}.zarr"
        more = ["--n", CELLS, "--samples-per-cell", draws, "--trajectories", SHOWN[method], "--set", "frames=3"]
        found[method] = out, translate(study, out, *more, method=method)
    return found


@pytest.mark.parametrize(("method", "model"), [("bridge", "OT-coupled bridge"), ("ddib", "ddib"), ("sdedit", "sdedit")])
def test_every_method_writes_the_same_kind_of_store(study, made, method, model) -> None:
    out, summary = made[method]
    store, source = open_store(out), open_store(study["store"])
    everything = np.arange(store.info.n_cells)
    assert summary["targets"] == list(TARGETS)
    assert summary["model"] == model
    assert store.info.n_cells == 2 * CELLS * DRAWS[method]
    assert set(store.obs["Metadata_Model"]) == {model}
    assert set(store.obs["Metadata_Sample"]) == set(map(str, range(DRAWS[method])))
    assert set(store.obs["Metadata_TargetCondition"]) == set(store.condition_names) == set(TARGETS)
    rows = source.obs.index.get_indexer(store.obs["Metadata_SourceCell"])
    assert (rows >= 0).all()
    assert (store.masks(everything) == source.masks(rows)).all()
    assert (store.x_T(everything) is None) == (method != "ddib")
    assert (store.counts(everything) != source.counts(rows)).any(axis=(1, 2, 3)).all()
    seen = store.info.attributes["trained_on"]
    assert seen == {name: ["P1", "P2"] for name in (["bridge"] if method == "bridge" else ["base", *TARGETS])}


@pytest.mark.parametrize("method", DRAWS)
def test_what_a_store_says_of_its_settings_makes_it_again(made, method) -> None:
    written = open_store(made[method][0]).info.attributes["config"]
    again = Config.model_validate(written)
    assert again.model_dump(mode="json", exclude=set() if method == "ddib" else {"x_T"}) == written


def test_a_result_depends_on_the_cell_and_its_draw_and_not_on_the_batch(study, made, tmp_path) -> None:
    for method in ("bridge", "sdedit"):
        out = tmp_path / f"{method}.zarr"
        more = ["--n", CELLS, "--samples-per-cell", 2, "--set", "batch_size=2"]
        translate(study, out, *more, method=method)
        one, other = open_store(made[method][0]), open_store(out)
        assert list(one.obs.index) == list(other.obs.index)
        rows = np.arange(one.info.n_cells)
        np.testing.assert_allclose(one.images(rows), other.images(rows), rtol=0, atol=1e-3)


def test_draws_of_a_cell_have_seeds_of_their_own_and_the_first_is_that_of_a_single_draw(study, made, tmp_path) -> None:
    translate(study, tmp_path / "one.zarr", "--n", CELLS)
    out, summary = made["bridge"]
    two, one = open_store(out), open_store(tmp_path / "one.zarr")
    assert (summary["cells"], summary["draws of each cell"]) == (CELLS, 2)
    pairs = two.obs.groupby(["Metadata_SourceCell", "Metadata_TargetCondition"])["Metadata_Sample"]
    assert pairs.apply(lambda samples: list(samples) == ["0", "1"]).all()
    assert two.obs["Metadata_Seed"].nunique() == 2 * CELLS
    first = np.flatnonzero(two.obs["Metadata_Sample"] == "0")
    assert list(two.obs.index[first]) == list(one.obs.index)
    assert (two.counts(first) == one.counts(np.arange(2 * CELLS))).all()
    second = two.counts(np.flatnonzero(two.obs["Metadata_Sample"] == "1"))
    assert (two.counts(first) != second).any(axis=(1, 2, 3)).all()


def test_draws_from_fresh_noise_keep_the_noise_of_each(study, tmp_path) -> None:
    fresh = ["--x-T", "fresh", "--samples-per-cell", 2, "--target", "dimmer", "--n", 3]
    translate(study, tmp_path / "out.zarr", *fresh, method="ddib")
    made = open_store(tmp_path / "out.zarr")
    seeds = torch.tensor([int(seed) for seed in made.obs["Metadata_Seed"]])
    expected = noise_per_image(seeds, (len(CHANNELS), SIZE, SIZE), purpose="x_T").numpy()
    np.testing.assert_array_equal(made.x_T(range(6)), expected)


def test_a_bridge_leads_back_and_from_condition_to_condition_and_not_from_one_to_itself(study, tmp_path) -> None:
    summary = translate(study, tmp_path / "out.zarr", "--source", "shrinker", "--n", 3)
    assert summary["targets"] == ["DMSO", "dimmer@5"]
    assert (summary["steps"], summary["network calls a cell"]) == (3, 6)
    summary = translate(study, tmp_path / "own.zarr", "--target", "DMSO", "--target", "dimmer", "--n", 3)
    made, cells = open_store(tmp_path / "own.zarr"), open_store(study["store"])
    own = np.flatnonzero(made.obs["Metadata_TargetCondition"] == "DMSO")
    rows = cells.obs.index.get_indexer(made.obs["Metadata_SourceCell"].iloc[own])
    assert (made.counts(own) == cells.counts(rows)).all()
    assert "by definition" in summary["DMSO to itself"]
    assert made.info.attributes["own_condition"] == "identity"


def test_strength_says_how_much_of_the_cell_may_change(study, tmp_path) -> None:
    cells = open_store(study["store"])
    for method, strengths in (("sdedit", (0, 1)), ("bridge", (0.05, 0.3))):
        distances = []
        for strength in strengths:
            out = tmp_path / f"{method}-{strength}.zarr"
            model = ["--name", f"at {strength}", "--target", "dimmer", "--n", 4]
            translate(
                study, out, "--strength", strength, *model, "--samples-per-cell", 1 + bool(strength), method=method
            )
            made = open_store(out)
            assert set(made.obs["Metadata_Model"]) == {f"at {strength}"}
            found = made.info.attributes["strength"]
            assert found == pytest.approx(strength if method == "sdedit" else [strength])
            images = made.images(range(made.info.n_cells)).reshape(-1, 4, *made.images([0]).shape[1:])
            rows = cells.obs.index.get_indexer(made.obs["Metadata_SourceCell"].iloc[:4])
            if strength == 0:
                assert (made.counts(range(4)) == cells.counts(rows)).all()
            distances.append(float(np.square(images[0] - images[-1]).mean()))
        assert distances == sorted(distances)
        assert distances[-1] > 2 * distances[0]


@pytest.mark.parametrize(
    ("method", "more", "steps", "calls"),
    [
        ("bridge", [], 9, 9),
        ("bridge", ["bridge_solver.flow=ode"], 2, 8),
        ("ddib", [], 2, 7),
        ("ddib", ["solver.order=1"], 4, 8),
        ("sdedit", ["solver.method=dpm++"], 9, 9),
        ("sdedit", ["solver.guidance_scale=2"], 2, 8),
    ],
)
def test_a_budget_of_calls_decides_the_steps(study, method, more, steps, calls) -> None:
    models = [f"bridge=[{study['bridge']}]"] if method == "bridge" else [f"base={study['base']}"]
    config = load(Config, overrides=[f"store={study['store']}", f"method={method}", *models, *more, "nfe=9"])
    asked = Asked(Condition.parse("DMSO"), [Condition.parse("dimmer@5")])
    opened = open_method(config, describe(study["store"]), asked, device=torch.device("cpu"))
    assert (opened.steps, opened.calls) == (steps, calls)


@pytest.mark.parametrize("method", DRAWS)
def test_trajectories_are_kept_as_a_store_and_shown_as_pictures(study, made, method) -> None:
    out, summary = made[method]
    beside = out.with_name(f"by {method}_trajectories.zarr")
    frames, store, cells = open_store(beside), open_store(out), open_store(study["store"])
    assert summary["trajectories"] == str(beside)
    assert frames.info.n_cells == len(TARGETS) * SHOWN[method] * 3
    assert set(frames.obs["Metadata_Frame"]) == set("012")
    assert frames.info.attributes["config"] == store.info.attributes["config"]
    for target, way in ways_of(frames).items():
        assert way.times[0] == 0
        assert way.times[-1] == 1
        part = frames.obs[frames.obs["Metadata_TargetCondition"] == target]
        sources = part["Metadata_SourceCell"].drop_duplicates()
        first, last = (part[part["Metadata_Frame"] == number].index for number in "02")
        of_source = cells.counts(cells.obs.index.get_indexer(sources))
        of_result = store.counts(store.obs.index.get_indexer([f"{cell}>{target}" for cell in sources]))
        assert (frames.counts(frames.obs.index.get_indexer(first)) == of_source).all()
        shown = frames.counts(frames.obs.index.get_indexer(last)).astype(int)
        assert np.abs(shown - of_result).max() <= 1
    gif, strip = (Image.open(beside.with_suffix(kind)) for kind in (".gif", ".png"))
    assert gif.n_frames == 3
    assert gif.info["loop"] == 0
    assert strip.size[0] > 3 * 60


def test_trajectories_are_replaced_with_the_translation_and_with_nothing_else(study, tmp_path, capsys) -> None:
    out, few = tmp_path / "out.zarr", ["--target", "dimmer", "--n", 2, "--trajectories", 1, "--set", "frames=2"]
    translate(study, out, *few)
    assert "exists already" in refused(capsys, *given(study, "bridge"), *few, "--out", out)
    out.with_name("out_trajectories.png").unlink()
    translate(study, out, *few, "--set", "overwrite=true")
    assert out.with_name("out_trajectories.png").is_file()
    (tmp_path / "new_trajectories.gif").mkdir()
    (tmp_path / "new_trajectories.gif" / "notes").write_text("mine")
    again = [*given(study, "bridge"), *few, "--set", "overwrite=true", "--out", tmp_path / "new.zarr"]
    assert "new_trajectories.gif: exists already" in refused(capsys, *again)
    assert not (tmp_path / "new.zarr").exists()


def test_bridges_of_one_control_are_taken_together(study, tmp_path, capsys) -> None:
    apart = {name: _bridge(tmp_path / name, study["store"], (name,)) for name in TARGETS}
    both = [part for path in apart.values() for part in ("--bridge", path)]
    summary = translate(study, tmp_path / "out.zarr", *both, "--n", 2, models=False)
    assert summary["targets"] == list(TARGETS)
    store = ["--store", study["store"], "--method", "bridge", "--out", tmp_path / "never.zarr"]
    twice = ["--bridge", apart["dimmer@5"], "--bridge", study["bridge"]]
    assert "both lead to dimmer@5" in refused(capsys, *store, *twice)
    assert "--input-array" not in refused(capsys, *store, *twice)


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("bridge", ["--target", "dimer@5"], 'Did you mean "dimmer@5"?'),
        ("bridge", ["--strength", 0.9], "was trained at"),
        ("bridge", ["--strength", 0], "was trained at"),
        ("bridge", ["--strength", -1], "greater than or equal to 0"),
        (
            "bridge",
            ["--nfe", 3, "--source", "dimmer", "--set", "bridge_solver.flow=ode"],
            "the fewest steps, 1, cost 8",
        ),
        ("bridge", ["--nfe", 20, "--set", "bridge_solver.steps=4"], "both say how many steps"),
        ("bridge", ["--x-T", "fresh"], "x_T does nothing for method bridge"),
        ("bridge", ["--set", "solver.steps=4"], "bridge_solver says"),
        ("bridge", ["--samples-per-cell", 2, "--set", "bridge_solver.flow=ode"], "nothing to chance"),
        ("bridge", ["--set", "bridge_solver.flow=ode", "--set", "bridge_solver.step=euler"], "leave it out"),
        ("bridge", ["--set", "frames=3"], "frames are of trajectories"),
        ("bridge", ["--trajectories", 1, "--target", "DMSO"], "condition of the cells"),
        ("ddib", ["--strength", 0.5], "use method sdedit or bridge"),
        ("ddib", ["--samples-per-cell", 2], "the cell's own noise"),
        ("ddib", ["--trajectories", 2, "--x-T", "fresh"], "begin at cells"),
        ("ddib", ["--set", "bridge_solver.steps=4"], "bridge_solver does nothing for method ddib"),
        ("ddib", ["--bridge", "absent"], "bridge does nothing for method ddib"),
        ("sdedit", ["--strength", 1.5], "from 0 to 1"),
        ("sdedit", ["--strength", 0.0001], "0.002 to 1"),
        ("sdedit", ["--strength", 0, "--samples-per-cell", 2], "strength 0 returns the cell"),
        ("sdedit", ["--strength", 0, "--trajectories", 2], "leaves cells as they are"),
        ("sdedit", ["--set", "solver.start_noise=true"], "inverts nothing"),
        ("sdedit", ["--nfe", 3, "--set", "solver.steps=25"], "the fewest steps, 2, cost 4"),
        ("sdedit", ["--target", "latrunculin"], "is not in the data"),
        ("guess", [], "method"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(study, tmp_path, capsys, method, more, message) -> None:
    assert message in refused(capsys, *given(study, method), *more, "--out", tmp_path / "never.zarr")
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_missing_or_of_other_cells_are_refused(study, tmp_path, capsys) -> None:
    out = ["--out", tmp_path / "never.zarr"]
    store = ["--store", study["store"], "--method", "bridge"]
    assert '"bridge" is required by method bridge' in refused(capsys, *store, *out)
    assert '"base" is required by method ddib' in refused(capsys, "--store", study["store"], *out)
    assert "base does nothing for method bridge" in refused(
        capsys, *store, "--bridge", study["bridge"], "--base", study["base"], *out
    )
    assert "holds no finished model" in refused(capsys, *store, "--bridge", tmp_path / "absent", *out)
    assert "is no bridge between images" in refused(capsys, *store, "--bridge", study["base"], *out)
    others = {"channels": ("DNA", "ER", "AGP")}, {"control": "water"}
    for number, changed in enumerate(others):
        other = _bridge(tmp_path / f"other {number}", study["store"], **changed)
        message = refused(capsys, *store, "--bridge", other, *out)
        assert "water" in message or "AGP" in message
    mixed = ["--bridge", study["bridge"], "--bridge", tmp_path / "other 1"]
    assert refused(capsys, *store, *mixed, *out)
    assert not (tmp_path / "never.zarr").exists()


def test_a_misspelt_target_of_a_bridge_is_found_without_torch(study, tmp_path) -> None:
    arguments = [
        str(part) for part in ("translate", *given(study, "bridge"), "--target", "shrinkr", "--out", tmp_path / "x")
    ]
    code = f"import sys; from cellbridge.cli import main\nprint(main({arguments!r}))\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'Did you mean "shrinker"?' in done.stderr
    assert done.stdout.split() == ["2", "False"]
