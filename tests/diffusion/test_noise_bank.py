"""Claims about the bank: the great circle's closed form, and that no draw is an item."""

import pytest
import torch

from cellbridge.diffusion.noise_bank import NoiseBank, fit_bank, slerp


def test_between_orthogonal_vectors_lies_the_unit_circle():
    """cos(u π/2) a + sin(u π/2) b."""
    a, b = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for share in (0.0, 0.3, 1.0):
        angle = torch.tensor(share * torch.pi / 2, dtype=torch.float64)
        torch.testing.assert_close(slerp(a, b, share), torch.stack([angle.cos(), angle.sin()]))


def test_parallel_vectors_and_zero_go_along_the_line():
    a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    torch.testing.assert_close(slerp(a, 0 * a, 0.25), 0.75 * a)


def test_a_mean_that_all_items_share_is_kept_and_not_made_louder():
    """Plain interpolation would multiply it by up to sqrt(2)."""
    items = 3.0 + torch.randn(40, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = fit_bank(items).sample(torch.arange(200), (2, 16, 16))
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.05)
    assert drawn.var().item() == pytest.approx(1.0, rel=0.05)


def test_no_draw_comes_near_an_item():
    """A quarter of the way at least: the angle to the nearest item is π/8 or more, for items that are nearly orthogonal."""
    items = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    drawn = NoiseBank(items).sample(torch.arange(100), (3, 16, 16))
    centred = [part.double().flatten(1) - items.double().mean(dim=0).flatten() for part in (drawn, items)]
    cosine = torch.nn.functional.normalize(centred[0]) @ torch.nn.functional.normalize(centred[1]).T
    assert cosine.max().item() < torch.tensor(torch.pi / 8).cos().item() + 0.03


def test_a_bank_keeps_no_more_than_it_is_asked_to():
    assert len(fit_bank(torch.randn(9, 1, 4, 4), items=5).items) == 5
