"""Power spectra of axial slices, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from MedDPMLib.errors import MedDPMError
from MedDPMLib.metrics.spectrum import BANDS, band_power


def _disc(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    y, x = np.meshgrid(*(np.arange(side) - side / 2 for side in shape[1:]), indexing="ij")
    return np.broadcast_to(np.hypot(y, x) < radius, shape).copy()


def test_white_noise_has_its_variance_in_every_band():
    inside = _disc((12, 128, 128), 50)
    noise = 0.3 * np.random.default_rng(0).standard_normal(inside.shape)
    assert band_power(noise, inside) == pytest.approx(np.full(4, 0.09), rel=0.05)


@pytest.mark.parametrize("band", range(4))
def test_a_wave_has_its_power_in_the_band_of_its_frequency(band):
    inside = _disc((2, 128, 128), 60)
    frequency = (BANDS[band] + BANDS[band + 1]) / 2
    wave = np.broadcast_to(np.sin(2 * np.pi * frequency * np.arange(128)), inside.shape)
    power = band_power(wave, inside)
    assert power.argmax() == band
    assert np.delete(power, band).max() < 0.02 * power[band]


def test_what_is_outside_and_the_mean_do_not_matter_and_power_goes_with_the_square():
    inside = _disc((4, 96, 96), 40)
    image = np.random.default_rng(1).standard_normal(inside.shape)
    other = np.where(inside, 3 * image + 7, -100)
    assert band_power(other, inside) == pytest.approx(9 * band_power(image, inside), rel=1e-9)


def test_an_even_brain_has_no_power_though_its_outline_is_sharp():
    inside = _disc((3, 96, 96), 40)
    assert band_power(np.where(inside, 1.0, -1.0), inside) == pytest.approx(np.zeros(4), abs=1e-20)


def test_averaging_two_neighbors_takes_away_what_theory_says():
    inside = _disc((24, 128, 128), 62)
    noise = np.random.default_rng(2).standard_normal(inside.shape)
    blurred = (noise + np.roll(noise, 1, axis=2)) / 2
    ratio = band_power(blurred, inside) / band_power(noise, inside)
    v, u = np.meshgrid(*(np.fft.fftfreq(128),) * 2, indexing="ij")
    radius = np.hypot(v, u)
    expected = [
        np.mean(np.cos(np.pi * u[(radius >= low) & (radius < high)]) ** 2)
        for low, high in zip(BANDS[:-1], BANDS[1:], strict=True)
    ]
    assert ratio == pytest.approx(expected, rel=0.03)


def test_an_empty_mask_is_refused():
    with pytest.raises(MedDPMError, match="mask is empty"):
        band_power(np.zeros((2, 8, 8)), np.zeros((2, 8, 8), bool))
