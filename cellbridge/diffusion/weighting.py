"""Loss weights by time: min-SNR, the same training whatever the network predicts.

References
----------
Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy", arXiv:2303.09556, sec. 3.4.
"""

from torch import Tensor

from cellbridge.diffusion.prediction import Prediction
from cellbridge.diffusion.schedule import Schedule
from cellbridge.typing import Times


def min_snr_weights(schedule: Schedule, t: Times, *, prediction: Prediction, gamma: float) -> Tensor:
    """Return the weight of each time's squared error: (batch,), in the type of `t`.

    Every prediction's loss becomes min(SNR, gamma) |d x_0|^2: its weight is min(SNR, gamma) for x_0, min(SNR, gamma) / SNR for epsilon and
    min(SNR, gamma) / (SNR + 1) for v. Written in the angle, SNR = cot^2, they are finite at both ends. At zero terminal SNR the
    weight of the last step is 0 for v and x_0.

    Parameters
    ----------
    gamma : where the weight of clean times is cut; 5 in the paper.
    """
    angle = schedule.angle(t)
    cosine, sine = angle.cos().square(), angle.sin().square()
    if prediction == "epsilon":
        weights = (gamma * sine / cosine).clamp_max(1.0)
    elif prediction == "v":
        weights = cosine.minimum(gamma * sine)
    else:
        weights = (cosine / sine).clamp_max(gamma)
    return weights.to(t.dtype)
