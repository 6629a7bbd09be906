"""The loops that the engine is held against: the shortest one there can be, and one with the settings of a well-known example."""

from collections.abc import Callable, Iterator

import torch
from problem import Draw
from torch import Tensor, nn

from cellbridge.diffusion.schedule import Schedule
from cellbridge.runtime import autocast


def v_loss(network: nn.Module, draw: Draw, schedule: Schedule) -> Tensor:
    """Return the mean squared error of v = alpha epsilon - sigma x_0, written out."""
    alpha, sigma = schedule.coefficients(draw.t, draw.x_0)
    x_t = alpha * draw.x_0 + sigma * draw.epsilon
    v: Tensor = network(x_t, draw.t, class_labels=draw.labels, return_dict=False)[0]
    return (v.float() - (alpha * draw.epsilon - sigma * draw.x_0)).square().mean()


class BareLoop:
    """The shortest honest loop: fused AdamW and clipped gradients, no average, nothing watched, saved or told."""

    def __init__(self, network: nn.Module, draws: Iterator[Draw], *, schedule: Schedule, dtype: torch.dtype):
        self.network, self.draws, self.schedule, self.dtype = network.train(), draws, schedule, dtype
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.0, fused=True)

    def __call__(self) -> None:
        draw = next(self.draws)
        with autocast(draw.x_0.device, self.dtype):
            loss = v_loss(self.network, draw, self.schedule)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class ExampleLoop:
    """A minimal loop with the settings of diffusers' `train_unconditional.py --use_ema`, its defaults otherwise.

    float32; AdamW as PyTorch makes it, unfused (betas 0.95 and 0.999, weight decay 1e-6, eps 1e-8); gradients clipped at norm 1; an
    average by `EMAModel` (0.9999, warm-up, inv_gamma 1, power 3/4), tensor by tensor; the loss read by the host at each step. The
    objective is the engine's, and the images are ready in memory, where the example's are decoded one by one.

    Parameters
    ----------
    learning_rate : step, counted from 1 → rate; the example's is a setting, too.
    """

    def __init__(
        self,
        network: nn.Module,
        draws: Iterator[Draw],
        *,
        schedule: Schedule,
        learning_rate: Callable[[int], float] = lambda step: 1e-4,
    ):
        from diffusers.training_utils import EMAModel  # after cellbridge, whose guard lets torchvision import

        self.network, self.draws, self.schedule = network.train(), draws, schedule
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=learning_rate(1), betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.losses: list[float] = []

    def __call__(self) -> None:
        loss = v_loss(self.network, next(self.draws), self.schedule)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(len(self.losses) + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.network.parameters())
        self.losses.append(loss.detach().item())
