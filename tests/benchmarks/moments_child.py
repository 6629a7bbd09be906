"""A child process of the suite `evaluate`: takes the moments of many cells, and prints its peak of memory above its start."""

import json
import sys
from collections.abc import Iterator

import machine
import numpy as np
import torch
import torch_fidelity_calls as rival

from cellbridge.metrics.moments import Moments

_BATCH = 256
_CPU = torch.device("cpu")


def batches(cells: int, features: int) -> Iterator[np.ndarray]:
    """Draw features batch by batch, as an extractor hands them out."""
    scale = 1 / np.sqrt(np.arange(1, features + 1, dtype=np.float32))
    for start in range(0, cells, _BATCH):
        rng = np.random.default_rng(start)
        yield rng.standard_normal((min(_BATCH, cells - start), features), dtype=np.float32) * scale


def trace(way: str, cells: int, features: int) -> float:
    """Return the trace of the covariance, streamed or of all cells at once."""
    if way == "streamed":
        moments = Moments()
        for batch in batches(cells, features):
            moments.add(batch)
        return float(np.trace(moments.covariance))
    rows = np.concatenate(list(batches(cells, features)))
    return float(np.trace(rival.moments_all_at_once(rows)[1]))


if __name__ == "__main__":
    way, cells, features = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    trace(way, 300, 16)  # libraries are in memory before the start
    machine.forget_peak(_CPU)
    before = machine.peak_gib(_CPU)["host"]
    value = trace(way, cells, features)
    peak = (machine.peak_gib(_CPU)["host"] - before) * 1024
    print(json.dumps({"peak_mib": peak, "trace": value, "cells": cells}))
