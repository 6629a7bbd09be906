"""Merge the two components of a mixture potential whose merging costs the objective least."""

import torch
from torch import Tensor

from cellbridge.bridge.mixture_descent import Potential, State, balanced, carrying, state_of

_JUDGED = 1000
"""Rows of either side on which mergers are compared."""
MOST_PAIRS = 12
"""That are tried at a merger."""


def merged(state: State, x: Tensor, y: Tensor) -> State:
    """Return a state of one component less.

    The pairs that share the most rows are tried, each replaced by the closed-form bridge between what both carry together.

    Parameters
    ----------
    state : of two components or more.
    x, y : rows (n, d) and (m, d) of the state.
    """
    source, target = state.of_source.softmax(1), state.of_target.softmax(1)
    pairs = _overlapping(source, target)
    both_source, both_target = (
        torch.stack([rows[:, a] + rows[:, b] for a, b in pairs], 1) for rows in (source, target)
    )
    joint = carrying(both_source, both_target, x, y)
    few_x, few_y = slice(0, _JUDGED), slice(0, _JUDGED)
    new_source, new_target = joint.of_source(x[few_x]), joint.of_target(y[few_y])
    best: tuple[float, Potential] | None = None
    for number, (a, b) in enumerate(pairs):
        rest = [k for k in range(source.shape[1]) if k not in (a, b)]
        of_source, of_target = state.of_source[few_x], state.of_target[few_y]
        both = of_target[:, [a, b]].logsumexp(1)
        share = target[few_y][:, [a, b]].sum(1) + 1e-8
        level = (share * (both - new_target[:, number])).sum() / share.sum()
        potential = _replaced(state.potential, rest, joint, number, level)
        tried = State(
            potential,
            torch.cat([of_source[:, rest], new_source[:, number : number + 1] + level], 1),
            torch.cat([of_target[:, rest], new_target[:, number : number + 1] + level], 1),
        )
        tried = balanced(tried, None, sweeps=15)
        if best is None or tried.objective < best[0]:
            best = tried.objective, tried.potential
    assert best is not None
    return balanced(state_of(best[1], x, y), None, sweeps=15)


def _overlapping(source: Tensor, target: Tensor) -> list[tuple[int, int]]:
    """Return the pairs of components that share the most of their rows, by the cosine of their shares on both sides."""
    count = source.shape[1]
    overlap = torch.zeros(count, count)
    for shares in (source, target):
        unit = shares / shares.norm(dim=0).clamp_min(1e-8)
        overlap += unit.T @ unit
    first, second = torch.triu_indices(count, count, offset=1)
    order = overlap[first, second].argsort(descending=True)[:MOST_PAIRS]
    return [(int(first[place]), int(second[place])) for place in order]


def _replaced(old: Potential, rest: list[int], new: Potential, number: int, level: Tensor) -> Potential:
    """Return the components `rest` of one potential and one of another, whose weight is raised by `level`."""
    return Potential(
        torch.cat([old.log_weights[rest], new.log_weights[number : number + 1] + level.double()]),
        torch.cat([old.slopes[rest], new.slopes[number : number + 1]]),
        torch.cat([old.precisions[rest], new.precisions[number : number + 1]]),
    )
