"""Diffusion models as a `Denoiser` (the mean of x_0): schedules, predictions, the training loss, guidance, and the ODE both ways."""
