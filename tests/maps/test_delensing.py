"""The template of lensing B modes: against theory on the whole sky, and nulls. A sky that ends at
l = 600, so that nside 256 holds it; theory is that of fields which end there."""

from dataclasses import replace

import healpy
import numpy as np
import pytest

from cobaya_cnnlens.maps import delensing
from cobaya_cnnlens.maps.mosaic_simulations import binned
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.bandpowers import Bins
from cobaya_cnnlens.simulate.patches import Pointing
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.theory.camb import Spectra, lensed_polarisation

LMAX, NSIDE = 600, 256
PIXELS = np.arange(12 * NSIDE**2)
AT = Pointing(*healpy.pix2ang(NSIDE, PIXELS), np.zeros(len(PIXELS)))
BINS = Bins(30, 135, 2)
# Noise of κ̂ and of E, dimensionless and in µK².
N_KAPPA, N_E = 2e-8, 1e-5


@pytest.fixture(scope="module")
def theory(fiducial):
    cut = Spectra(*(cl[: LMAX + 1] for cl in vars(fiducial).values()))
    ee, bb = lensed_polarisation(cut, LMAX)
    return replace(cut, lensed_ee=ee, lensed_bb=bb)


def lensed(theory, number):
    """κ, E and B modes of a lensed sky."""
    sky = draw_sky(theory, LMAX, 5, "delensing", number)
    deflection = patches.deflect_by(patches.gradient_at(sky.philm, LMAX, AT, 1), AT, 1)
    p = patches.lensed_polarisation_at(sky.elm, LMAX, AT, deflection, 1)
    elm, blm = delensing.e_and_b_modes(NSIDE, PIXELS, p, LMAX, 1)
    return patches.convergence_alm(sky.philm, LMAX, LMAX), elm, blm


@pytest.fixture(scope="module")
def skies(theory):
    return [lensed(theory, number) for number in range(3)]


def template_of(theory, kappa_lm, elm, n_kappa, n_e, seed=7):
    """B modes of the template of noisy κ̂ and E, with the two filters."""
    generator = np.random.default_rng(seed)
    noise = [
        scale_alm(unit_alm(LMAX, generator), np.full(LMAX + 1, n**0.5)) for n in (n_kappa, n_e)
    ]
    flat = np.ones(LMAX + 1)
    kappa_filter = delensing.wiener(theory.kk, n_kappa * flat)
    e_filter = delensing.wiener(theory.lensed_ee, n_e * flat)
    philm = delensing.potential_alm(kappa_lm + noise[0], kappa_filter)
    filtered = scale_alm(elm + noise[1], e_filter)
    change = delensing.lensing_change(filtered, LMAX, philm, LMAX, NSIDE, PIXELS, 1)
    return delensing.e_and_b_modes(NSIDE, PIXELS, change, LMAX, 1)[1], e_filter, kappa_filter


def powers(template, blm):
    pairs = ((template, blm), (template, template), (blm, blm))
    return np.array([binned(healpy.alm2cl(*pair), BINS) for pair in pairs])


def over_skies(theory, skies, n_e):
    """⟨tB⟩, ⟨tt⟩, ⟨BB⟩ and the residual's power of all skies, and the two filters."""
    measured = []
    for number, (kappa_lm, elm, blm) in enumerate(skies):
        template, *filters = template_of(theory, kappa_lm, elm, N_KAPPA, n_e, number)
        left = powers(blm - template, blm)[1]
        measured.append([*powers(template, blm), left])
    return np.mean(measured, axis=0), filters


def test_the_change_is_the_derivative_along_the_deflection(skies):
    """By finite differences of the simulator's lensing, near a pole and elsewhere."""
    kappa_lm, elm, _ = skies[0]
    philm = delensing.potential_alm(kappa_lm, np.ones(LMAX + 1))
    pixels = np.concatenate([np.arange(40), np.arange(300_000, 300_500, 7)])
    at = Pointing(AT.theta[pixels], AT.phi[pixels], np.zeros(len(pixels)))
    gradient, step = patches.gradient_at(philm, LMAX, at, 1), 0.01
    forward, backward = (
        patches.lensed_polarisation_at(
            elm, LMAX, at, patches.deflect_by(sign * step * gradient, at, 1), 1
        )
        for sign in (1.0, -1.0)
    )
    expected = (forward - backward) / (2.0 * step)
    change = delensing.lensing_change(elm, LMAX, philm, LMAX, NSIDE, pixels, 1)
    np.testing.assert_allclose(change, expected, atol=2e-3 * expected.std())


def test_the_transfer_function_and_the_correlation_are_those_of_theory(theory, skies):
    (cross, auto, truth, _), filters = over_skies(theory, skies, N_E)
    power = delensing.template_power(theory, *filters, LMAX)
    expected = binned(power, BINS) / binned(theory.lensed_bb, BINS)
    np.testing.assert_allclose(cross / truth, expected, rtol=0.01)
    # Both filters are Wiener's: the template is to be subtracted as it is.
    np.testing.assert_allclose(cross / auto, 1.0, atol=0.02)
    np.testing.assert_allclose(cross**2 / auto / truth, expected, rtol=0.03)


def test_the_residual_is_the_b_power_of_what_kappa_did_not_see(theory, skies):
    """Without noise of E: CAMB's lensed B power of C^φφ (1 − ρ_L²)."""
    (_, _, truth, left), (_, kappa_filter) = over_skies(theory, skies, 0.0)
    partial = replace(theory, kk=theory.kk * (1.0 - kappa_filter))
    expected = binned(lensed_polarisation(partial, LMAX)[1], BINS) / binned(theory.lensed_bb, BINS)
    np.testing.assert_allclose(left / truth, expected, rtol=0.03)


@pytest.mark.parametrize("other", ["kappa", "E"])
def test_the_template_of_another_sky_is_a_null(theory, skies, other):
    (kappa_lm, elm, blm), (other_kappa, other_elm, _) = skies[:2]
    pair = (other_kappa, elm) if other == "kappa" else (kappa_lm, other_elm)
    cross, auto, truth = powers(template_of(theory, *pair, N_KAPPA, N_E)[0], blm)
    ell = np.arange(LMAX + 1)
    modes = np.bincount(np.digitize(ell, BINS.edges), 2 * ell + 1)[1:-1]
    np.testing.assert_array_less(np.abs(cross / np.sqrt(auto * truth)), 4.0 / np.sqrt(modes))


def test_a_map_of_b_modes_has_these_b_modes(skies):
    blm = skies[0][2]
    p = delensing.b_polarisation_at(blm, LMAX, AT, 1)
    again = delensing.e_and_b_modes(NSIDE, PIXELS, p, LMAX, 1)[1]
    power = binned(healpy.alm2cl(blm), BINS)
    np.testing.assert_allclose(binned(healpy.alm2cl(again, blm), BINS), power, rtol=1e-3)


def test_filters_and_potential_at_their_limits():
    signal, noise = np.array([0.0, 1.0, 3.0, 1.0]), np.array([0.0, 0.0, 1.0, np.inf])
    np.testing.assert_array_equal(delensing.wiener(signal, noise), [0.0, 1.0, 0.75, 0.0])
    lm = unit_alm(3, np.random.default_rng(1))
    lm[0] = 0.0
    again = patches.convergence_alm(delensing.potential_alm(lm, np.ones(4)), 3, 3)
    np.testing.assert_allclose(again, lm)
