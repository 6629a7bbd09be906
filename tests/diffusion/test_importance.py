import pytest
import torch

from cellbridge.diffusion.importance import ImportanceTimes

LOSSES = torch.tensor([1.0, 2.0, 4.0, 8.0])


def learned(*, uniform: float = 0.0, rounds: int = 10) -> ImportanceTimes:
    """Four times whose losses are always 1, 2, 4 and 8."""
    times = ImportanceTimes(4, uniform=uniform)
    for _ in range(rounds):
        times.note(torch.arange(4.0), LOSSES, micro=0)
        times.draw(torch.ones(1))
    return times


def drawn(times: ImportanceTimes, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    return times.draw((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def test_weighted_losses_of_known_size_are_the_same_at_every_time():
    t, weights = drawn(learned())
    assert torch.allclose(weights * LOSSES[t.long()], torch.full_like(weights, 3.75), atol=1e-6)


def test_probabilities_follow_the_losses_but_for_the_uniform_share():
    expected = 0.999 * LOSSES / 15 + 0.001 / 4
    assert torch.allclose(learned(uniform=0.001).probabilities(), expected, atol=1e-7)


def test_times_occur_as_often_as_their_probabilities_say():
    t, _ = drawn(learned())
    assert torch.bincount(t.long()).tolist() == pytest.approx((4000 * LOSSES / 15).tolist(), abs=1)


def test_times_are_uniform_until_each_has_ten_losses():
    t, weights = drawn(learned(rounds=9))
    assert torch.equal(weights, torch.ones_like(weights))
    assert torch.bincount(t.long()).tolist() == [1000] * 4


@pytest.mark.parametrize("rounds", [0, 10])
def test_the_weighted_mean_over_draws_is_the_mean_over_times(rounds):
    t, weights = drawn(learned(uniform=0.001, rounds=rounds))
    value = torch.tensor([3.0, -1.0, 5.0, 0.5], dtype=torch.float64)
    assert (weights * value[t.long()]).mean().item() == pytest.approx(value.mean().item(), abs=0.01)


def test_only_the_last_ten_losses_of_a_time_count_also_within_one_batch():
    reference = [[] for _ in range(3)]
    times = ImportanceTimes(3)
    generator = torch.Generator().manual_seed(0)
    for size in (5, 40, 1, 17, 64):
        t = torch.randint(0, 3, (size,), generator=generator)
        losses = torch.rand(size, generator=generator)
        times.note(t.float(), losses, micro=0)
        times.draw(torch.ones(1))
        for place, loss in zip(t.tolist(), losses.tolist(), strict=True):
            reference[place] = [*reference[place], loss][-10:]
    found = times.state()["losses"].sort(dim=1).values
    assert torch.allclose(found, torch.tensor(reference).sort(dim=1).values)


def test_a_loss_that_is_computed_twice_counts_once_and_only_from_the_next_draw_on():
    once, twice = learned(rounds=9), learned(rounds=9)
    once.note(torch.arange(4.0), LOSSES, micro=0)
    twice.note(torch.arange(4.0), 100 * LOSSES.flip(0), micro=0)
    twice.note(torch.arange(4.0), LOSSES, micro=0)
    assert torch.equal(once.probabilities(), torch.full((4,), 0.25))
    for one, other in zip(drawn(once), drawn(twice), strict=True):
        assert torch.equal(one, other)


def test_micro_batches_are_taken_in_their_order_whoever_comes_first():
    ordered, swapped = ImportanceTimes(1, history=2), ImportanceTimes(1, history=2)
    losses = {0: torch.tensor([1.0, 2.0]), 1: torch.tensor([3.0])}
    for times, order in ((ordered, (0, 1)), (swapped, (1, 0))):
        for micro in order:
            times.note(torch.zeros(len(losses[micro])), losses[micro], micro=micro)
    assert torch.equal(ordered.state()["losses"], torch.tensor([[3.0, 2.0]]))
    assert torch.equal(ordered.state()["losses"], swapped.state()["losses"])


def test_what_state_returns_restores_the_draws_in_place():
    trained, fresh = learned(), ImportanceTimes(4, uniform=0.0)
    trained.note(torch.tensor([2.0]), torch.tensor([40.0]), micro=0)
    for name, tensor in trained.state().items():
        fresh.state()[name].copy_(tensor)
    for one, other in zip(drawn(trained), drawn(fresh), strict=True):
        assert torch.equal(one, other)
