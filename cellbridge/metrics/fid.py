"""Fréchet and kernel distance through torch-fidelity, with an injected extractor and any number of channels.

Reference: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500 (Fréchet); Bińkowski et al. 2018,
"Demystifying MMD GANs", arXiv:1801.01401 (kernel); the computation is torch-fidelity's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch_fidelity
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from cellbridge.metrics.intervals import Blocks, Estimate, LeftOut, jackknife, leave_one_out, normal_interval

_NAME, _LAYER = "cellbridge-injected", "features"


@dataclass(frozen=True)
class Distances:
    """How far two sets of images lie apart, at one n on both sides.

    Parameters
    ----------
    left_out : both distances, (group, 2), with a group of cells left out of the first set, and of the second; None without interval.
    """

    frechet: Estimate
    kernel: Estimate
    left_out: LeftOut | None = None


def distances(features_1: Tensor, features_2: Tensor, *, blocks: tuple[Blocks, Blocks]) -> Distances:
    """Return Fréchet and kernel distance of two sets of features, with jackknife intervals over blocks of cells.

    Parameters
    ----------
    features_1, features_2 : (n, feature) of equal n.
    blocks : the cells of each set that are left out together.

    Raises
    ------
    ValueError : the sets differ in size; the Fréchet distance's bias depends on n.
    """
    if len(features_1) != len(features_2):
        raise ValueError(f"{len(features_1)} against {len(features_2)} images: distances are compared at one n only")
    n, unit = len(features_1), f"jackknife over {blocks[0].unit}"
    rotated_1, rotated_2 = rotate_to_span(features_1, features_2)
    gamma = 1 / features_1.shape[1]

    def both(rows_1: NDArray[np.int64], rows_2: NDArray[np.int64]) -> NDArray[np.float64]:
        part_1, part_2 = rotated_1[torch.as_tensor(rows_1)], rotated_2[torch.as_tensor(rows_2)]
        return np.asarray(frechet_and_kernel(part_1, part_2, gamma=gamma))

    everything = np.arange(n)
    frechet, kernel = both(everything, everything)
    left_out = leave_one_out(both, blocks, fewest=2)
    frechet_error, kernel_error = (None, None) if left_out is None else map(float, jackknife(*left_out))
    return Distances(
        normal_interval(float(frechet), frechet_error, n=n, resampled=unit),
        normal_interval(float(kernel), kernel_error, n=n, resampled=unit),
        left_out,
    )


def frechet_and_kernel(
    inputs_1: Tensor,
    inputs_2: Tensor,
    *,
    extractor: Callable[[Tensor], Tensor] | None = None,
    gamma: float | None = None,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Return the Fréchet distance and the unbiased kernel distance (MMD², cubic kernel) as torch-fidelity computes them.

    |mu_1 - mu_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½);  k(x, y) = (gamma xᵀy + 1)³. Features are held in float64, so that means and
    covariances are, too.

    Parameters
    ----------
    inputs_1, inputs_2 : images (n, channel, height, width), or features (n, feature) where no extractor is given.
    extractor : images → (batch, feature).
    gamma : the kernel's scale; the default is 1 / number of features.

    Raises
    ------
    ValueError : fewer than two images on a side.
    """
    n = min(len(inputs_1), len(inputs_2))
    if n < 2:
        raise ValueError(f"{n} image(s): a covariance needs two or more on each side")
    FEATURE_EXTRACTORS_REGISTRY.setdefault(_NAME, _Injected)
    with torch.random.fork_rng(devices=[]):  # the data loader inside draws from the global state
        result = torch_fidelity.calculate_metrics(
            input1=_Rows(inputs_1),
            input2=_Rows(inputs_2),
            feature_extractor=_NAME,
            injected=extractor,
            fid=True,
            kid=True,
            isc=False,
            kid_kernel_poly_gamma=gamma,
            kid_subset_size=n,
            # With both sides of size n every subset is the whole set, and one gives the estimate itself.
            kid_subsets=1 if len(inputs_1) == len(inputs_2) else 20,
            batch_size=batch_size,
            cuda=False,
            save_cpu_ram=True,
            cache=False,
            verbose=False,
        )
    return result["frechet_inception_distance"], result["kernel_inception_distance_mean"]


def rotate_to_span(features_1: Tensor, features_2: Tensor) -> tuple[Tensor, Tensor]:
    """Express features in an orthonormal basis of the space that they span, where that has fewer dimensions.

    Both distances depend on inner products alone, so they stay as they are; eigenvalues of 10,240² (five channels of Inception)
    become eigenvalues of (n_1 + n_2)².
    """
    together = torch.cat([features_1, features_2]).double()
    if together.shape[1] > together.shape[0]:
        _, triangular = torch.linalg.qr(together.T)
        together = triangular.T
    return together[: len(features_1)], together[len(features_1) :]


def gap_closed(
    model: Distances, floor: Distances, ceiling: Distances, *, of: Literal["frechet", "kernel"]
) -> Estimate | None:
    """Return 1 - (model - floor) / (ceiling - floor): 1 is as good as real, 0 is no translation.

    The interval is the jackknife of the whole statistic. Floor and ceiling are measured against one and the same draw (the second
    set of both), so a group of cells is left out of both at once; the other draws are disjoint. None where the ceiling does not
    lie above the floor, since there is no gap to close.
    """
    column = ("frechet", "kernel").index(of)
    found, low, high = (getattr(part, of) for part in (model, floor, ceiling))
    if high.value <= low.value:
        return None

    def closed(of_model: Any, of_floor: Any, of_ceiling: Any) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.atleast_1d(1 - (of_model - of_floor) / (of_ceiling - of_floor))

    value = float(closed(found.value, low.value, high.value)[0])
    error = None
    if model.left_out is not None and floor.left_out is not None and ceiling.left_out is not None:
        (of_model, of_reference), (first, shared), (control, shared_too) = (
            (part[0][:, column], part[1][:, column]) for part in (model.left_out, floor.left_out, ceiling.left_out)
        )
        samples = (
            closed(of_model, low.value, high.value),
            closed(of_reference, low.value, high.value),
            closed(found.value, first, high.value),
            closed(found.value, shared, shared_too),
            closed(found.value, low.value, control),
        )
        error = float(jackknife(*samples))
    known = error is not None and np.isfinite(error)
    return normal_interval(value, error if known else None, n=found.n, resampled=found.resampled)


class _Rows(Dataset[Tensor]):
    """Rows of a tensor, as torch-fidelity reads its inputs."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class _Injected(FeatureExtractorBase):
    """Hands torch-fidelity's batches to a callable given as the keyword `injected`; without one, the rows are features already."""

    def __init__(
        self, name: str, features_list: list[str], injected: Callable[[Tensor], Tensor] | None = None, **_: Any
    ):
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
        features = rows if self.injected is None else self.injected(rows)
        return (features.double(),)
