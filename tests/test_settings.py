from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from cellbridge.config import AdapterConfig, NetworkConfig, TrainingConfig
from cellbridge.errors import ConfigError
from cellbridge.settings import Section, dump, load, settings, validate


class Study(Section):
    name: str
    training: TrainingConfig = TrainingConfig()
    network: NetworkConfig | None = None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_win_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    file = write(tmp_path, "name: a\ntraining: {steps: 3, seed: 1}\n")
    study = load(Study, file=file, overrides=["training.steps=5", "name=b"], options={"name": "null"})
    assert (study.name, study.training.steps, study.training.seed) == ("null", 5, 1)


def test_a_dumped_configuration_loads_as_an_equal_one(tmp_path: Path) -> None:
    study = Study(name="µ", network=NetworkConfig(widths=(8, 16)))
    assert load(Study, file=write(tmp_path, dump(study))) == study


@pytest.mark.parametrize("overrides", [["training.lerning_rate=1"], ["network.witdhs=[8]"]])
def test_an_unknown_key_gets_the_nearest_one(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r'unknown key ".*"\. Did you mean "(learning_rate|widths)"'):
        load(Study, overrides=["name=a", *overrides])


def test_a_yaml_tag_that_would_run_code_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = write(tmp_path, f"name: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(ConfigError, match="not plain YAML"):
        load(Study, file=file)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.batch_size=10", "training.accumulation=4"], "batch_size 10 is not a multiple of accumulation 4"),
        (["training.steps=0"], "greater than 0"),
        (["training.gradient_clip=inf"], "finite number"),
        (["training.seed=-1"], "greater than or equal to 0"),
        (["training.seed=9223372036854775808"], "less than 9223372036854775808"),
        (["training.trackers=wandb"], r"Write a list: \[wandb\]"),
        (["training"], "expected KEY=VALUE"),
        (["name.a=1"], "holds a single value"),
        ([], '"name" is required'),
    ],
)
def test_a_value_that_does_not_fit_is_named(overrides: list[str], message: str) -> None:
    named = [] if message.endswith("required") else ["name=a"]
    with pytest.raises(ConfigError, match=message):
        load(Study, overrides=[*named, *overrides])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such configuration file"):
        load(Study, file=tmp_path / "absent.yaml")


class Held(Section):
    test: tuple[str, ...] = ()
    n: int | None = None
    widths: tuple[int, ...] = ()
    order: Literal[1, 2] = 1
    rate: float = 1.0
    on: bool = False


@pytest.mark.parametrize("override", ["n=true", "widths=[8, true]", "order=true", "rate=false"])
def test_true_and_false_are_no_numbers(override: str) -> None:
    with pytest.raises(ConfigError, match="is true or false, expected a number"):
        load(Held, overrides=[override])
    assert load(Held, overrides=["on=true"]).on


def test_a_name_that_yaml_reads_as_a_number_is_to_be_quoted_as_it_was_typed(tmp_path: Path) -> None:
    for loaded in ({"file": write(tmp_path, "test: [a, 007]\n")}, {"overrides": ["test=[a, 007]"]}):
        with pytest.raises(ConfigError, match=r'Quote it: "007"\.'):
            load(Held, **loaded)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='the key "steps" stands twice'):
        load(Study, file=write(tmp_path, "name: a\ntraining:\n  steps: 3\n  steps: 4\n"))


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it() -> None:
    with pytest.raises(ConfigError, match=r'unknown key "nam"\. Did you mean "name"'):
        load(Study, overrides=["nam=a"])


def test_an_adapter_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="targets"):
        load(AdapterConfig, overrides=["targets=[]"])


def test_every_setting_is_listed_with_its_default_and_its_description():
    class Part(Section):
        width: int = 3
        """How wide."""

    class Whole(Section):
        store: Path
        part: Part = Part(width=5)
        names: dict[str, str] = Field(default_factory=dict)

    assert settings(Whole) == [("store", "required", ""), ("part.width", "5", "How wide."), ("names", "{}", "")]


def test_a_part_of_a_group_leaves_the_rest_of_its_default() -> None:
    class Inner(Section):
        width: int = 1
        depth: int = 1

    class Outer(Section):
        inner: Inner = Inner(width=7)

    class Top(Section):
        outer: Outer = Outer(inner=Inner(depth=9))

    assert validate(Outer, {"inner": {"depth": 3}}, source="test").inner == Inner(width=7, depth=3)
    assert validate(Outer, {"inner": {"width": 2}}, source="test").inner == Inner(width=2)
    assert validate(Top, {"outer": {"inner": {"width": 2}}}, source="test").outer.inner == Inner(width=2, depth=9)
