import numpy as np
import pytest

from cobaya_cnnlens.theory.camb import (
    CambSettings,
    Cosmology,
    compute_spectra,
    convergence_from_potential,
    lensed_polarisation,
    potential_from_convergence,
)


def test_convergence_and_potential_are_inverse():
    clkk = np.geomspace(1e-6, 1e-9, 50)
    clkk[0] = 0.0
    np.testing.assert_allclose(
        convergence_from_potential(potential_from_convergence(clkk)), clkk, rtol=1e-14
    )


def test_kappa_is_half_the_laplacian_of_phi():
    # κ_L = ½ L(L+1) φ_L, so C^κκ = ¼ [L(L+1)]² C^φφ.
    clpp = np.ones(11)
    assert convergence_from_potential(clpp)[10] == pytest.approx(0.25 * 110.0**2)


def test_spectra_are_raw_and_start_at_zero(fiducial):
    assert fiducial.ee[0] == fiducial.ee[1] == fiducial.kk[0] == 0.0
    assert len(fiducial.ee) == len(fiducial.kk) == 5001
    # E has 6.4 µK rms: D_l in place of C_l would be off by orders of magnitude.
    l = np.arange(5001)
    rms = np.sqrt(((2 * l + 1) * fiducial.ee).sum() / (4 * np.pi))
    assert rms == pytest.approx(6.37, rel=0.01)


def test_convergence_against_limber(fiducial):
    """C_L^κκ against a Limber integral of CAMB's nonlinear matter power, which CAMB itself
    does not use at these L for the lensing potential."""
    import camb

    from cobaya_cnnlens.theory.camb import camb_parameters

    parameters = camb_parameters(Cosmology(), CambSettings(lens_potential_accuracy=1.0))
    results = camb.get_background(parameters)
    chi_star = results.conformal_time(0) - results.tau_maxvis
    chi = np.linspace(0, chi_star, 400)[1:-1]
    step = chi[1] - chi[0]
    z = results.redshift_at_comoving_radial_distance(chi)
    power = camb.get_matter_power_interpolator(
        parameters,
        nonlinear=True,
        hubble_units=False,
        k_hunit=False,
        kmax=30.0,
        var1=camb.model.Transfer_Weyl,
        var2=camb.model.Transfer_Weyl,
        zmax=z[-1],
    )
    kernel = ((chi_star - chi) / (chi**2 * chi_star)) ** 2
    for L in (300, 1000, 2000):
        k = (L + 0.5) / chi
        weyl = np.array(
            [power.P(zi, ki) if 1e-4 <= ki < 30.0 else 0.0 for zi, ki in zip(z, k, strict=True)]
        )
        limber = step * np.sum(weyl * kernel / k**4)  # C^φφ/4 with 2 Weyl = ∇²-free potential
        expected = (L * (L + 1.0)) ** 2 * limber
        assert fiducial.kk[L] == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_accuracy_of_the_convergence(fiducial):
    finer = compute_spectra(Cosmology(), CambSettings(lmax=3500, lens_potential_accuracy=16.0))
    for L in (300, 1000, 2000, 3000):
        assert fiducial.kk[L] == pytest.approx(finer.kk[L], rel=2e-3)


def test_lensed_spectra_against_camb(fiducial):
    """Correlation-function lensing of the truncated spectra against CAMB's own lensed C_l."""
    ee, bb = lensed_polarisation(fiducial)
    l = np.arange(300, 2501)
    np.testing.assert_allclose(ee[l], fiducial.lensed_ee[l], rtol=2e-3)
    np.testing.assert_allclose(bb[l], fiducial.lensed_bb[l], rtol=4e-3)


def test_vary_changes_one_parameter():
    moved = Cosmology().vary(omch2=0.1285)
    assert (moved.omch2, moved.ombh2) == (0.1285, Cosmology().ombh2)
