import time

import machine
import numpy as np
import pytest
import torch
from interleaved import interleave, paired_ratio, timed

CPU = torch.device("cpu")


def test_contenders_take_turns_in_alternating_order() -> None:
    seen: list[str] = []
    interleave({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, blocks=3, steps=2, warm_up=1)
    assert "".join(seen) == "aabb" + "bbaa" + "aabb" + "bbaa"


def test_every_block_is_the_seconds_of_one_step() -> None:
    times = interleave({"short": lambda: time.sleep(0.004), "long": lambda: time.sleep(0.012)}, blocks=5, steps=2)
    assert times["short"].shape == (5, 2)
    assert times["short"][:, 0].min() >= 0.004
    assert times["long"][:, 0].min() >= 0.012
    ratio = paired_ratio(times["long"], times["short"])
    assert 1.0 < ratio.low <= ratio.value <= ratio.high
    assert ratio.pairs == 5


def test_sleep_takes_wall_time_and_no_processor_time() -> None:
    wall, processor = timed(lambda: time.sleep(0.05), steps=1)
    assert wall >= 0.05
    assert processor < 0.5 * wall


def test_a_device_is_waited_for_inside_the_block() -> None:
    wall, _ = timed(lambda: None, steps=1, synchronize=lambda: time.sleep(0.02))
    assert wall >= 0.02


def test_the_ratio_is_free_of_a_drift_that_neighbours_share() -> None:
    drift = np.linspace(1.0, 30.0, 21)
    ratio = paired_ratio(np.stack((3.0 * drift, drift), 1), np.stack((2.0 * drift, drift), 1))
    assert ratio.value == pytest.approx(1.5)
    assert ratio.interval == pytest.approx((1.5, 1.5))


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        noisy = np.exp(0.1 * rng.standard_normal((30, 2)))
        ratio = paired_ratio(noisy, np.ones((30, 2)), seed=seed)
        covered += ratio.low <= 1.0 <= ratio.high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_machine_is_described_in_one_line() -> None:
    found = machine.describe(CPU)
    assert found["threads"] == torch.get_num_threads()
    assert f"{found['cores']} cores" in machine.one_line(found)


def test_the_peak_of_memory_is_that_of_the_part_measured() -> None:
    big = torch.ones(2**27)
    before = machine.peak_gib(CPU)["host"]
    assert before >= big.numel() * 4 / 2**30
    del big
    if not machine.forget_peak(CPU):
        pytest.skip("the kernel does not let this process reset its peak")
    assert machine.peak_gib(CPU)["host"] < before - 0.25
