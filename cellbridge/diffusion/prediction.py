"""What a network predicts: v, the noise epsilon, or the image x_0; each determines the other two.

x_t = alpha x_0 + sigma epsilon,   v = alpha epsilon - sigma x_0,   alpha^2 + sigma^2 = 1.

References
----------
Salimans & Ho 2022, "Progressive distillation", arXiv:2202.00512, appendix D.
"""

from typing import Literal

from torch import Tensor

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
