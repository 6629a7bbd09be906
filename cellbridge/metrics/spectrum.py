"""How the power of images lies over frequencies: radially, and in the lowest modes."""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

LOW_MODES = 4
"""Low frequencies are the first 4 x 4 modes of the discrete cosine transform of each channel."""
_BANDS = 8


def radial_spectrum(
    x: NDArray[np.floating], *, bands: int = 12
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return radial frequency (cycles per pixel), mean power (white noise: 1) and the standard error that white noise has.

    Power is |FFT(x)|² / pixels, averaged over images, channels and the frequencies of a band; each is exponential with mean 1
    under N(0, I), and real images count every frequency twice. The constant term is left out.
    """
    height, width = x.shape[-2:]
    power = (np.abs(np.fft.fft2(np.asarray(x, dtype=np.float64))) ** 2 / (height * width)).mean(axis=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    edges = np.linspace(0, 0.5, bands + 1)
    band = np.digitize(radius, edges, right=True)
    frequency, mean, error = [], [], []
    for index in range(1, bands + 1):
        inside = band == index
        if inside.any():
            frequency.append(float(radius[inside].mean()))
            mean.append(float(power[inside].mean()))
            error.append(float(np.sqrt(2 / (inside.sum() * x.shape[0] * x.shape[1]))))
    return np.asarray(frequency), np.asarray(mean), np.asarray(error)


def band_energy(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the energy of radial bands of frequencies, (image, band), and how many frequencies each band has.

    Σ |FFT(x)|² / pixels over the channels and frequencies of a band: in white noise chi² with channels · frequencies degrees of freedom,
    since a band holds every frequency together with its conjugate. Bands of equal width up to the Nyquist frequency, and one of
    the corners beyond; the constant term is left out.
    """
    height, width = x.shape[-2:]
    power = (np.abs(np.fft.fft2(np.asarray(x, dtype=np.float64))) ** 2 / (height * width)).sum(axis=1)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    band = np.digitize(radius, np.linspace(0, 0.5, _BANDS + 1), right=True)
    occupied = [index for index in range(1, _BANDS + 2) if (band == index).any()]
    energy = np.stack([power[:, band == index].sum(axis=1) for index in occupied], axis=1)
    return energy, np.array([(band == index).sum() for index in occupied], dtype=np.float64)


def low_modes(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the lowest modes of the orthonormal cosine transform of each channel: (…, `LOW_MODES`, `LOW_MODES`)."""
    return np.asarray(dctn(x, axes=(-2, -1), norm="ortho")[..., :LOW_MODES, :LOW_MODES])
