"""What a network predicts: v, the noise epsilon, or the image x_0; each determines the other two.

x_t = alpha x_0 + sigma epsilon,   v = alpha epsilon - sigma x_0,   alpha^2 + sigma^2 = 1.

References
----------
Salimans & Ho 2022, "Progressive distillation", arXiv:2202.00512, appendix D.
"""

from typing import Literal

from torch import Tensor

from cellbridge.diffusion.schedule import Schedule
from cellbridge.errors import ConfigError
from cellbridge.typing import Images

Prediction = Literal["v", "epsilon", "x_0"]


def target(prediction: Prediction, x_0: Images, epsilon: Images, *, alpha: Tensor, sigma: Tensor) -> Images:
    """Return what the network is asked to predict of x_t = alpha x_0 + sigma epsilon.

    Parameters
    ----------
    alpha, sigma : the schedule at each image's time, shaped to multiply images.
    """
    if prediction == "v":
        return alpha * epsilon - sigma * x_0
    return epsilon if prediction == "epsilon" else x_0


def to_x_0(prediction: Prediction, output: Images, x_t: Images, *, alpha: Tensor, sigma: Tensor) -> Images:
    """Return the image that an output stands for; for epsilon this divides by alpha, so it fails where alpha is 0."""
    if prediction == "v":
        return alpha * x_t - sigma * output
    return (x_t - sigma * output) / alpha if prediction == "epsilon" else output


def to_epsilon(prediction: Prediction, output: Images, x_t: Images, *, alpha: Tensor, sigma: Tensor) -> Images:
    """Return the noise that an output stands for; for x_0 this divides by sigma, so it fails at the clean end."""
    if prediction == "v":
        return alpha * output + sigma * x_t
    return output if prediction == "epsilon" else (x_t - alpha * output) / sigma


def to_v(prediction: Prediction, output: Images, x_t: Images, *, alpha: Tensor, sigma: Tensor) -> Images:
    """Return the v that an output stands for; from epsilon this divides by alpha, and from x_0 by sigma."""
    if prediction == "epsilon":
        return (output - sigma * x_t) / alpha
    return output if prediction == "v" else (alpha * x_t - output) / sigma


CONVERSIONS = {"v": to_v, "epsilon": to_epsilon, "x_0": to_x_0}
"""What to convert to → how. Exact in every direction, up to the one end at which x_t alone is what the output says already: where alpha = 0
x_t is the noise, so epsilon determines neither x_0 nor v, and where sigma = 0 x_t is the image, so x_0 determines neither epsilon nor v. v
determines both everywhere."""


def require_defined(prediction: Prediction, schedule: Schedule) -> None:
    """Raise ConfigError where the prediction says nothing of the image at a time of the schedule: epsilon at zero terminal SNR."""
    if prediction == "epsilon" and schedule.zero_terminal_snr:
        raise ConfigError(
            "schedule.prediction = epsilon with zero_terminal_snr: at the last step x_t is the noise itself, so predicting it says nothing "
            "of the image (and divides by 0). Use prediction: v or x_0, or leave zero_terminal_snr off."
        )
