"""Claims about finding nucleus and cell in a crop."""

import numpy as np
import pytest

from cellbridge.metrics.regions import dna_channel, find_regions, regions_of_masks


def _crops(n=20, size=48, noise=0.05, seed=0):
    """Draw cells with a nucleus in the middle, each with another cell at the border, and return images, nuclei and cells."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    images, nuclei, cells = np.full((n, 3, size, size), -0.9, dtype=np.float32), [], []
    for image in images:
        cy, cx, radius = *(size / 2 + rng.uniform(-3, 3, 2)), rng.uniform(5, 7)
        nucleus, cell = np.hypot(y - cy, x - cx) <= radius, np.hypot(y - cy, (x - cx) / 1.2) <= 2 * radius
        neighbour = np.hypot(y - 2, x - 2) <= 4
        image[0][nucleus], image[0][neighbour] = 0.5, 0.9
        image[1][cell], image[2][cell], image[1][neighbour] = 0.2, 0.4, 0.3
        nuclei.append(nucleus)
        cells.append(cell)
    return images + noise * rng.standard_normal(images.shape).astype(np.float32), np.stack(nuclei), np.stack(cells)


def _overlap(a, b):
    return (a & b).sum(axis=(1, 2)) / (a | b).sum(axis=(1, 2))


def test_the_nucleus_in_the_middle_and_its_cell_are_found_beside_a_brighter_neighbour():
    images, nuclei, cells = _crops()
    found = find_regions(images, dna=0)
    assert _overlap(found.nuclei, nuclei).min() > 0.8
    assert _overlap(found.cells, cells).min() > 0.8
    assert (found.nuclei <= found.cells).all()
    assert (found.count == 2).all()


def test_each_image_is_judged_by_itself():
    images = _crops()[0]
    together, alone = find_regions(images, dna=0), find_regions(images[7:8], dna=0)
    assert (together.nuclei[7] == alone.nuclei[0]).all()
    assert (together.cells[7] == alone.cells[0]).all()


def test_an_image_without_contrast_has_no_nucleus():
    images = _crops(n=3)[0]
    images[1, 0] = -1
    images[2] = -1
    found = find_regions(images, dna=0)
    assert found.nuclei.any(axis=(1, 2)).tolist() == [True, False, False]
    assert found.count.tolist() == [2, 0, 0]
    assert not found.cells[2].any()


def test_holes_are_filled_and_with_the_dna_stain_alone_the_cell_is_its_nucleus():
    images, nuclei, _ = _crops(noise=0.0)
    y, x = np.mgrid[:48, :48]
    images[:, 0, (np.hypot(y - 24, x - 24) <= 1.5)] = -0.9
    found = find_regions(images[:, :1], dna=0)
    assert (found.cells == found.nuclei).all()
    assert _overlap(found.nuclei, nuclei).min() > 0.8


def test_turned_images_have_turned_regions():
    images = _crops()[0]
    found, turned = find_regions(images, dna=0), find_regions(np.rot90(images, axes=(2, 3)), dna=0)
    assert (np.rot90(found.nuclei, axes=(1, 2)) == turned.nuclei).all()
    assert (np.rot90(found.cells, axes=(1, 2)) == turned.cells).all()


def test_a_stores_masks_are_taken_as_they_are():
    masks = np.zeros((2, 4, 4), dtype=np.uint8)
    masks[0, :3], masks[0, 1, 1] = 1, 2
    found = regions_of_masks(masks)
    assert (found.cells.sum(), found.nuclei.sum(), found.count.tolist()) == (12, 1, [1, 0])


@pytest.mark.parametrize(("channels", "expected"), [(["ER", "DNA"], 1), (["Hoechst", "Actin"], 0), (["Actin"], None)])
def test_the_stain_of_the_nucleus_is_known_by_its_name(channels, expected):
    assert dna_channel(channels) == expected
