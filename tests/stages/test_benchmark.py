import json
from pathlib import Path

import pytest

from cellbridge.cli import main
from cellbridge.errors import ConfigError
from cellbridge.stages import benchmark
from cellbridge.stages.benchmark import Config

SUITE = """
from neighbour import VALUE


def run(*, parts, quick, device):
    rows = [
        {"claim": "speed", "value": VALUE, "interval": [1.1, 1.4], "unit": "", "goal": "≥ 1.2", "met": True},
        {"claim": "rate", "value": 12345.6, "interval": None, "unit": "images/s", "goal": None, "met": None},
        {"claim": "stall", "value": 0.0612, "interval": [0.05, 0.07], "unit": "", "goal": "≤ 0.05", "met": False},
        {"claim": "device", "value": None, "interval": None, "unit": "", "goal": None, "met": None, "why": "no device"},
    ]
    part = {"rows": rows, "seconds": 1.0, "peak_memory_gib": {"host": 0.5}, "peak_is_of_this_part": True}
    return {
        "suite": "train", "machine": {"summary": "a machine"}, "parts": {"a": part},
        "asked": {"parts": parts, "quick": quick, "device": device},
    }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "train.py").write_text(SUITE)
    (suites / "neighbour.py").write_text("VALUE = 1.25\n")
    return suites


def test_the_table_has_values_intervals_goals_and_whether_they_are_met(folder: Path) -> None:
    table = benchmark.run(Config(suite="train"), folder=folder)["table"]
    lines = {line.split()[0]: " ".join(line.split()) for line in table.splitlines()}
    assert lines["speed"] == "speed 1.25 [1.1, 1.4] ≥ 1.2 yes"
    assert lines["stall"] == "stall 0.0612 [0.05, 0.07] ≤ 0.05 NO"
    assert lines["rate"] == "rate 12346 images/s"
    assert "device: not measured: no device." in table
    assert table.endswith("a machine")


def test_parts_are_separated_by_commas_and_reach_the_suite(folder: Path) -> None:
    config = Config(suite="train", parts="step, best", quick=True, device="cpu")  # type: ignore[arg-type]
    assert benchmark.run(config, folder=folder)["asked"] == {"parts": ("step", "best"), "quick": True, "device": "cpu"}


def test_a_run_directory_gets_numbers_table_settings_and_provenance(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = benchmark.run(Config(suite="train", out=out), folder=folder)
    assert json.loads((out / "metrics.json").read_text())["parts"] == found["parts"]
    assert (out / "table.txt").read_text() == found["table"] + "\n"
    assert "suite: train" in (out / "config.yaml").read_text()
    assert "torch" in json.loads((out / "provenance.json").read_text())["packages"]


def test_the_terminal_shows_the_table_and_json_every_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = benchmark.run
    monkeypatch.setattr(benchmark, "run", lambda config: measure(config, folder=folder))
    assert main(["benchmark", "train", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "≥ 1.2" in shown
    assert "'rows'" not in shown
    assert main(["benchmark", "train", "--json", "--parts", "a"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["a"]["rows"][0]["value"] == 1.25


def test_an_unknown_suite_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "sleep"]) == 2
    assert 'there is no benchmark suite "sleep". Known: ' in capsys.readouterr().err


def test_without_a_checkout_the_remedy_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.py: the suite .* comes without the suites\. Run the command from"):
        benchmark.run(Config(suite="train"), folder=tmp_path)
