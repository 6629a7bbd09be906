"""torch-fidelity as it is called in published evaluations: one call for each condition, from images or from features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import cellbridge  # noqa: F401 (before torch-fidelity: it mends torchvision's import)

_NAME, _LAYER = "cellbridge-benchmark", "features"


def frechet_and_kernel(
    inputs_1: Tensor, inputs_2: Tensor, *, extractor: Callable[[Tensor], Tensor] | None = None, batch_size: int = 64
) -> tuple[float, float]:
    """Return both distances as torch-fidelity's `calculate_metrics` gives them.

    Of the kernel distance one subset that is the whole set is taken, which is the least work that it can be given; by default there are a
    hundred of a thousand rows each. Its results are cached nowhere, as by default.

    Parameters
    ----------
    inputs_1, inputs_2 : n images each, or n rows of features where there is no extractor.
    """
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    FEATURE_EXTRACTORS_REGISTRY.setdefault(_NAME, _extractor_class())
    with torch.random.fork_rng(devices=[]):  # its data loader draws from the global state
        result = torch_fidelity.calculate_metrics(
            input1=_Rows(inputs_1),
            input2=_Rows(inputs_2),
            feature_extractor=_NAME,
            injected=extractor,
            fid=True,
            kid=True,
            kid_subset_size=min(len(inputs_1), len(inputs_2)),
            kid_subsets=1,
            batch_size=batch_size,
            cuda=False,
            save_cpu_ram=True,
            verbose=False,
        )
    return result["frechet_inception_distance"], result["kernel_inception_distance_mean"]


def moments_all_at_once(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance as torch-fidelity takes them, of all rows in memory."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found = fid_features_to_statistics(torch.from_numpy(rows))
    return found["mu"], found["sigma"]


class _Rows(Dataset[Tensor]):
    """Rows of a tensor, as torch-fidelity reads its inputs."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


def _extractor_class() -> type:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Injected(FeatureExtractorBase):
        """Hands batches to a callable given as the keyword `injected`; without one, the rows are features already."""

        def __init__(self, name: str, features_list: list[str], injected: Any = None, **_: Any):
            super().__init__(name, features_list)
            self.injected = injected

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return (_LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return _LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 1)

        def forward(self, rows: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                return (rows if self.injected is None else self.injected(rows),)

    return Injected
