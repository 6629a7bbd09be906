"""The suite `evaluate`: what distances cost, against calling torch-fidelity once for each condition, and whether the numbers are the same.

    cellbridge benchmark evaluate [--parts features,images] [--quick]

| part | cellbridge against torch-fidelity | goal |
|---|---|---|
| features | ten conditions, the features given | ≥ 3 times as fast; numbers equal to 1e-5 |
| images | ten conditions against one set of real images, whose features are computed once or for each call | ≥ 3 times as fast; equal to 1e-5 |
| intervals | the jackknife over wells, from what is computed once, against computing each value anew with the same code | – |
| memory | moments of 100,000 cells streamed; all of them in memory | no more than for a quarter of the cells |
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import parts as suite_parts
import torch
import torch_fidelity_calls as rival
from claims import Row, row
from interleaved import Times, bootstrap, interleave, now, paired_ratio
from torch import Tensor, nn

from cellbridge.metrics.features import Extractor, extract
from cellbridge.metrics.fid import distances, frechet_and_kernel
from cellbridge.metrics.intervals import Blocks
from cellbridge.runtime import pick_device

_FASTER, _SAME = 3.0, 1e-5


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Parameters
    ----------
    conditions, n, features, wells : of the distances; n images on each side.
    channels, size_px : of the images.
    cells : whose moments are streamed; a quarter of them stands beside.
    """

    conditions: int = 10
    n: int = 300
    features: int = 2048
    wells: int = 20
    channels: int = 5
    size_px: int = 64
    cells: int = 100_000


FULL = Size()
QUICK = Size(conditions=3, n=200, features=1024, cells=20_000)
SMALLEST = Size(conditions=2, n=24, features=32, wells=4, size_px=16, cells=400)
"""For the tests of the suite itself: its numbers mean nothing."""


def run(*, parts: Sequence[str] | None = None, quick: bool = False, device: str = "auto") -> dict[str, Any]:
    """Measure the parts asked for (all by default), and return their rows, details, seconds and peaks of memory.

    Raises
    ------
    ConfigError : there is no such part.
    """
    return measure(parts, size=QUICK if quick else FULL, device=pick_device(device))


def measure(parts: Sequence[str] | None, *, size: Size, device: torch.device) -> dict[str, Any]:
    """Measure the parts at a size."""
    found = suite_parts.measured("evaluate", PARTS, parts, size=size, device=device)
    versions = {name: metadata.version(name) for name in ("torch-fidelity", "numpy", "scipy")}
    found["machine"]["summary"] += "; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    return found | {"versions": versions, "size": vars(size)}


def features(size: Size, device: torch.device) -> dict[str, Any]:
    """Both distances of every condition from features that are given; each condition is a pair of neighbouring blocks."""
    pairs = [(_features(size, 2 * i, shift=0.1), _features(size, 2 * i + 1)) for i in range(size.conditions)]
    found: dict[str, list[tuple[float, float]]] = {"torch-fidelity": [], "cellbridge": []}
    turns = {
        "torch-fidelity": _in_turn(rival.frechet_and_kernel, pairs, found["torch-fidelity"]),
        "cellbridge": _in_turn(frechet_and_kernel, pairs, found["cellbridge"]),
    }
    rival.frechet_and_kernel(pairs[0][0][:4, :4], pairs[0][1][:4, :4])  # its imports are no part of its cost
    times = interleave(turns, blocks=size.conditions, warm_up=0)
    rows = _faster(times, f"features of {size.conditions} conditions, n = {size.n}, {size.features} features")
    # Its kernel is summed in float32 where the features are, which leaves no digit of a small distance; so both are compared in float64.
    in_float64 = [rival.frechet_and_kernel(*(part[:, :64].double() for part in pair)) for pair in pairs]
    ours = [frechet_and_kernel(*(part[:, :64] for part in pair)) for pair in pairs]
    kernels = _same({"torch-fidelity": in_float64, "cellbridge": ours}, column=1)
    return {"rows": [*rows, _same(found), kernels], "seconds_per_condition": _seconds(times)}


def images(size: Size, device: torch.device) -> dict[str, Any]:
    """Both distances of every condition from images: real features are computed once here, and anew in each call there."""
    network = _network(size, device)
    real = _images(size, 0)
    conditions = [_images(size, 1 + i) for i in range(size.conditions)]
    extractor = Extractor("drawn", "-", network)
    found: dict[str, list[tuple[float, float]]] = {"torch-fidelity": [], "cellbridge": []}

    def naive(generated: Tensor) -> tuple[float, float]:
        return rival.frechet_and_kernel(generated, real, extractor=lambda part: network(part).cpu())

    extract(extractor, real[:8])
    began = now()
    of_real = extract(extractor, real)
    once = now() - began
    turns = {
        "torch-fidelity": _in_turn(naive, [(part,) for part in conditions], found["torch-fidelity"]),
        "cellbridge": _in_turn(
            lambda generated: frechet_and_kernel(extract(extractor, generated), of_real),
            [(part,) for part in conditions],
            found["cellbridge"],
        ),
    }
    times = interleave(turns, blocks=size.conditions, warm_up=0)
    times["cellbridge"] = times["cellbridge"] + once / size.conditions
    rows = _faster(times, f"images of {size.conditions} conditions against one real set, n = {size.n}")
    per_image = float(once[0]) / size.n
    return {
        "rows": [*rows, _same(found), row("… the extractor's cost", 1e3 * per_image, unit="ms/image")],
        "seconds_per_condition": _seconds(times),
    }


def intervals(size: Size, device: torch.device) -> dict[str, Any]:
    """Both distances with their intervals over wells, against each left-out value computed from its rows."""
    wells = Blocks(np.arange(size.n) % size.wells, "wells")
    pairs = [(_features(size, 2 * i, shift=0.1), _features(size, 2 * i + 1)) for i in range(size.conditions)]
    ours, anew = [], []
    for pair in pairs:
        began = time.perf_counter()
        left_out = distances(*pair, blocks=(wells, wells)).left_out
        ours.append(time.perf_counter() - began)
        assert left_out is not None
        began = time.perf_counter()
        codes = wells.codes % len(left_out[0])
        again = [frechet_and_kernel(pair[0][codes != group], pair[1]) for group in range(len(left_out[0]))]
        again += [frechet_and_kernel(pair[0], pair[1][codes != group]) for group in range(len(left_out[1]))]
        anew.append(time.perf_counter() - began)
        np.testing.assert_allclose(np.concatenate(left_out), again, rtol=1e-6)
    ratios = np.array(anew) / np.array(ours)
    claim = f"intervals of {size.conditions} conditions, {size.wells} wells a side"
    return {
        "rows": [
            row(claim, float(np.median(ratios)), interval=bootstrap(ratios, np.median), unit="times as fast"),
            row("… all conditions", float(np.sum(ours)), unit="s"),
        ]
    }


def memory(size: Size, device: torch.device) -> dict[str, Any]:
    """Peaks of memory of child processes that take the moments of all cells, streamed or at once."""
    few, many = size.cells // 4, size.cells
    streamed = {n: _peak("streamed", n, size) for n in (few, many)}
    whole = _peak("whole", many, size)
    growth = streamed[many]["peak_mib"] / streamed[few]["peak_mib"]
    apart = abs(streamed[many]["trace"] / whole["trace"] - 1)
    return {
        "rows": [
            row(f"peak of {many:,} cells streamed / of {few:,}, {size.features} features", growth, at_most=1.1),
            row("… streamed", streamed[many]["peak_mib"], unit="MiB above the start"),
            row("… all at once (torch-fidelity's statistics)", whole["peak_mib"], unit="MiB above the start"),
            row("… difference of the covariances' traces, relative", apart, at_most=_SAME),
        ],
        "streamed": streamed,
        "whole": whole,
    }


Part = Callable[[Size, torch.device], dict[str, Any]]
PARTS: Mapping[str, Part] = MappingProxyType(
    {"features": features, "images": images, "intervals": intervals, "memory": memory}
)


def _in_turn(call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], found: list[Any]) -> Callable[[], None]:
    """Return a step that calls with the next arguments each time, and keeps what came back."""
    coming = iter(arguments)
    return lambda: found.append(call(*next(coming)))


def _faster(times: Mapping[str, Times], claim: str) -> list[Row]:
    wall, processor = (paired_ratio(times["torch-fidelity"], times["cellbridge"], clock=clock) for clock in (0, 1))
    return [
        row(claim, wall.value, interval=wall.interval, at_least=_FASTER, unit="times as fast"),
        row("… in processor time", processor.value, interval=processor.interval, unit="times as fast"),
    ]


def _same(found: Mapping[str, Sequence[tuple[float, float]]], *, column: int = 0) -> Row:
    """Return the largest difference of Fréchet (0) or kernel (1) distances; in units of the largest of them, since a kernel's can be 0."""
    theirs, ours = (np.array(found[name])[:, column] for name in ("torch-fidelity", "cellbridge"))
    apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
    name = ("Fréchet", "kernel (there in float64, too)")[column]
    return row(f"… largest relative difference, {name}", float(apart), at_most=_SAME)


def _seconds(times: Mapping[str, Times]) -> dict[str, list[float]]:
    return {name: values[:, 0].tolist() for name, values in times.items()}


def _features(size: Size, seed: int, *, shift: float = 0.0) -> Tensor:
    """Return features as an Inception gives them: float32, not negative, with a decaying spectrum."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, size.features, generator=torch.Generator().manual_seed(10**6))
    factors = torch.randn(size.n, 64, generator=generator) / torch.arange(1, 65).sqrt()
    noise = 0.3 * torch.randn(size.n, size.features, generator=generator)
    return (0.3 * (factors @ mixing) + noise + shift).relu()


def _images(size: Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size.n, size.channels, 8, 8, generator=generator) * (1 + 0.1 * seed) - 0.5
    return nn.functional.interpolate(coarse, size=(size.size_px,) * 2, mode="bilinear").clamp(-1, 1)


def _network(size: Size, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return an Inception-like extractor with drawn weights: convolutions down to an eighth, then the mean of `features` maps."""
    widths = (size.channels, 64, 128, 256)
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(widths[-1], size.features, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        network = nn.Sequential(*layers).eval().to(device)
    return lambda part: network(part.to(device))


def _peak(way: str, cells: int, size: Size) -> dict[str, float]:
    """Run a child process, and return its peak of memory above its start, and the trace of the covariance."""
    script = Path(__file__).with_name("moments_child.py")
    command = [sys.executable, str(script), way, str(cells), str(size.features)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
