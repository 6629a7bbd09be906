import torch

from cellbridge.bridge.path import bridge_sample


def test_marginals_are_those_of_the_brownian_bridge() -> None:
    source, target = torch.full((40_000, 1), -1.0), torch.full((40_000, 1), 2.0)
    s = torch.full((40_000,), 0.25)
    x = bridge_sample(source, target, s, reg=0.8, generator=torch.Generator().manual_seed(0))
    assert abs(float(x.mean()) - (0.75 * -1 + 0.25 * 2)) < 0.01
    assert abs(float(x.var()) - 0.8 * 0.25 * 0.75) < 0.005


def test_the_ends_are_exact_for_vectors_and_images() -> None:
    for shape in ((3, 4), (3, 2, 4, 4)):
        source, target = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        for s, end in ((0.0, source), (1.0, target)):
            x = bridge_sample(source, target, torch.full((3,), s), reg=10.0, generator=torch.Generator())
            assert torch.equal(x, end)


def test_the_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    bridge_sample(
        torch.zeros(2, 3),
        torch.ones(2, 3),
        torch.rand(2, generator=torch.Generator()),
        reg=1.0,
        generator=torch.Generator(),
    )
    assert torch.equal(before, torch.get_rng_state())
