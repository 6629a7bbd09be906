"""Claims about feature extractors."""

import pytest
import torch

from cellbridge.errors import ModelError
from cellbridge.metrics.features import Extractor, extract, standardised


def test_features_that_are_not_finite_are_refused():
    broken = Extractor("broken", "0", lambda images: images.flatten(1) / 0)
    with pytest.raises(ModelError, match="not finite"):
        extract(broken, torch.ones(2, 1, 2, 2))


def test_features_do_not_depend_on_the_batch_size():
    extractor = Extractor("mean", "0", lambda images: images.mean(dim=(2, 3)))
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extract(extractor, images, batch_size=3), extract(extractor, images))


def test_standardised_features_have_mean_zero_and_deviation_one_on_the_images_they_are_named_after():
    images = torch.rand(200, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 0.25
    extractor = Extractor("mean", "ab", lambda part: 7 * part.mean(dim=(2, 3)) + 3)
    found = standardised(extractor, images, name="200 training cells")
    features = extract(found, images)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(dim=0), torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)
    assert (found.name, found.sha256) == ("mean, standardised on 200 training cells", "ab")
