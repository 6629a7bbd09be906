import json
from pathlib import Path

import numpy as np
import pytest

from cellbridge.cli import main


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    made = {
        "source": rng.normal(size=(300, 2)),
        "target": rng.normal(size=(200, 2)) + 2,
        "wide": rng.normal(size=(300, 3)),
    }
    made["nan"] = np.where(np.arange(600).reshape(300, 2) == 7, np.nan, made["source"])
    made["few"] = made["source"][:3]
    paths = {name: tmp_path / f"{name}.npy" for name in made}
    for name, rows in made.items():
        np.save(paths[name], rows.astype(np.float32))
    return paths


def fit(source: Path, target: Path, out: Path, *more: str) -> int:
    command = ["fit-bridge", "--source-array", str(source), "--target-array", str(target), "--out", str(out)]
    return main([*command, *(more or ("--reg", "1")), "--budget-seconds", "1", "--set", "bridge.components=[1]"])


def test_a_bridge_is_fitted_and_rows_are_translated(arrays, tmp_path, capsys) -> None:
    run, out = tmp_path / "run", tmp_path / "moved.npy"
    assert fit(arrays["source"], arrays["target"], run) == 0
    assert "solver: " in capsys.readouterr().out
    translate = ["translate", "--bridge", str(run), "--input-array", str(arrays["source"]), "--seed", "1"]
    assert main([*translate, "--out", str(out)]) == 0
    moved = np.load(out)
    assert moved.shape == (300, 2)
    assert moved.dtype == np.float32
    assert np.allclose(moved.mean(0), np.load(arrays["target"]).mean(0), atol=0.4)
    assert json.loads((run / "metrics.json").read_text())["solver"] in ("mixture", "neural")
    assert "sha256" in (run / "provenance.json").read_text()
    assert main([*translate, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "more", "text"),
    [
        ("source", "target", ("--reg", "0"), "greater than 0"),
        ("source", "target", ("--reg", "nan"), "finite"),
        ("nan", "target", (), "not finite"),
        ("source", "wide", (), "same columns"),
        ("few", "target", (), "too few"),
        ("source", "absent", (), "no such file"),
    ],
)
def test_what_cannot_be_bridged_ends_with_2_and_saves_nothing(
    arrays, tmp_path, capsys, source, target, more, text
) -> None:
    run = tmp_path / "run"
    assert fit(arrays[source], arrays.get(target, tmp_path / "absent.npy"), run, *more) == 2
    assert text in capsys.readouterr().err
    assert not run.exists()


def test_a_bridge_that_was_changed_is_refused(arrays, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert fit(arrays["source"], arrays["target"], run) == 0
    weights = run / "model" / "bridge.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(bytes(spoilt))
    translate = ["translate", "--bridge", str(run), "--input-array", str(arrays["source"])]
    assert main([*translate, "--out", str(tmp_path / "moved.npy")]) == 2
    assert "sha256 differs" in capsys.readouterr().err
    assert not (tmp_path / "moved.npy").exists()
