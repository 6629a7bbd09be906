"""The rendered studies that all tests of planted failures share."""

import pytest
from judged_studies import Judged


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """Evaluations that the tests share."""
    return Judged(tmp_path_factory.mktemp("planted"))
