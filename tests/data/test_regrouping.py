from pathlib import Path

import numpy as np
import pytest
import torch

from cellbridge.data.regrouping import Regrouping
from cellbridge.errors import StoreError

SHAPE = (2, 3, 3)


def regrouped(folder: Path, *, full_scale: int = 65535) -> Regrouping:
    return Regrouping(folder, targets=2, image_shape=SHAPE, full_scale=full_scale)


def test_images_come_back_target_by_target_with_the_noise_of_their_cells(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    counts = torch.from_numpy(draw.integers(0, 65535, (2, 5, *SHAPE)).astype(np.int32))
    x_T = torch.from_numpy(draw.standard_normal((5, *SHAPE)).astype(np.float32))
    with regrouped(tmp_path) as images:
        for part in (slice(0, 2), slice(2, 5)):
            images.add(counts[:, part].to(torch.uint16), x_T[part], clipped=part.start)
        np.testing.assert_array_equal(np.concatenate(list(images.counts())), counts.reshape(10, *SHAPE))
        np.testing.assert_array_equal(np.concatenate(list(images.x_T() or ())), torch.cat([x_T, x_T]))
        assert images.share_clipped == 2 / counts.numel()


@pytest.mark.parametrize(("full_scale", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_counts_are_kept_in_as_many_bits_as_the_store_needs(tmp_path: Path, full_scale: int, dtype: type) -> None:
    with regrouped(tmp_path, full_scale=full_scale) as images:
        images.add(torch.zeros(2, 1, *SHAPE, dtype=torch.int32), clipped=0)
        assert next(images.counts()).dtype == dtype


def test_noise_comes_for_all_cells_or_for_none(tmp_path: Path) -> None:
    with regrouped(tmp_path) as images:
        images.add(torch.zeros(2, 1, *SHAPE, dtype=torch.int32), clipped=0)
        assert images.x_T() is None
        images.add(torch.zeros(2, 1, *SHAPE, dtype=torch.int32), torch.zeros(1, *SHAPE), clipped=0)
        with pytest.raises(StoreError, match="1 of 2 cells came with their noise"):
            images.x_T()
