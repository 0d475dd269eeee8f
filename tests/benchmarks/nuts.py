"""NUTS with gradients of JAX beside Cobaya's MCMC, on lensing-only ΛCDM as `yaml/lcdm.yaml` has it.

    python tests/benchmarks/nuts.py [RUNS]

Means and widths of both, and effective samples (GetDist's, of the parameter that has least) per
CPU-second: warm-up and burn-in included, compilation apart. The two take turns, so that whatever
else the machine does meets both alike. It needs NumPyro (the extra "jax").
"""

import sys
import time
from pathlib import Path

import getdist
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from cobaya.run import run
from cobaya.yaml import yaml_load_file
from numpyro.infer import MCMC, NUTS, init_to_median

from cobaya_cnnlens import BandpowerLikelihood, read_emulator, read_release
from cobaya_cnnlens.likelihood.gradients import log_likelihood

INPUT = Path(__file__).parents[2] / "yaml" / "lcdm.yaml"
WARM_UP, SAMPLES = 300, 1500

likelihood = BandpowerLikelihood(read_release("refined_fiducial"))
emulator = read_emulator("lcdm")
log_like = log_likelihood(likelihood, emulator)


def lcdm():
    """The priors of yaml/lcdm.yaml, and the likelihood.

    Lensing measures σ8 Ωm^0.25 best. It stands in for logA: a prior that is flat in its logarithm
    is flat in logA. Parameters have widths of order one, which NumPyro's mass matrix expects.
    """
    point = {
        "ns": 0.96 + 0.02 * numpyro.sample("unit_ns", dist.Normal()),
        "ombh2": 0.0222 + 0.0005 * numpyro.sample("unit_ombh2", dist.Normal()),
        "omch2": numpyro.sample("omch2", dist.Uniform(0.10, 0.14)),
        "H0": numpyro.sample("H0", dist.Uniform(50.0, 90.0)),
    }
    amplitude = jnp.exp(numpyro.sample("ln_s8omegamp25", dist.Uniform(-0.6, -0.4)))
    at_three = emulator.spectra({**point, "logA": 3.0})[2]  # σ8 goes with √A_s
    ratio = amplitude / (at_three["sigma8"] * at_three["omegam"] ** 0.25)
    point["logA"] = 3.0 + 2.0 * jnp.log(ratio)
    for name, value in (*point.items(), ("s8omegamp25", amplitude)):
        if name not in ("omch2", "H0"):
            numpyro.deterministic(name, value)
    numpyro.factor("lensing", log_like(point))


def sampler(warm_up=WARM_UP, samples=SAMPLES):
    """NUTS of that model, which begins at the prior's centre."""
    kernel = NUTS(lcdm, dense_mass=True, init_strategy=init_to_median)
    return MCMC(kernel, num_warmup=warm_up, num_samples=samples, progress_bar=False)


def sample(chain, seed):
    """Samples by parameter."""
    with jax.enable_x64(True):
        chain.run(jax.random.key(seed))
        return {name: np.asarray(values) for name, values in chain.get_samples().items()}


NAMES = ("logA", "ns", "ombh2", "omch2", "H0", "s8omegamp25")
chain = sampler()


def of_nuts(seed):
    samples = sample(chain, seed)
    with jax.enable_x64(True):
        print("divergent steps:", int(chain.get_extra_fields()["diverging"].sum()), flush=True)
    return getdist.MCSamples(
        samples=np.array([samples[name] for name in NAMES]).T,
        names=NAMES,
        settings={"ignore_rows": 0},
    )


def of_cobaya(seed):
    content = yaml_load_file(str(INPUT))
    content.pop("output")
    content["sampler"]["mcmc"]["seed"] = seed
    _, sampler = run(content, no_mpi=True)
    return sampler.products(to_getdist=True, skip_samples=0.3)["sample"]


def moments(chains, name):
    """Mean, standard deviation and error of the mean of chains together."""
    means = np.array([chain.mean(name) for chain in chains])
    sigma = np.sqrt(np.mean([chain.std(name) ** 2 for chain in chains]))
    return means.mean(), sigma, means.std(ddof=1) / np.sqrt(len(chains))


def effective(chain):
    return min(chain.getEffectiveSamples(chain.index[name]) for name in NAMES)


def main(runs=3):
    begun = time.process_time()
    of_nuts(0)
    print(f"NUTS compiles and runs once in {time.process_time() - begun:.1f} CPU-s")
    chains = {of_nuts: [], of_cobaya: []}
    rates = {of_nuts: [], of_cobaya: []}
    for seed in range(1, runs + 1):
        for way in chains:
            begun = time.process_time()
            drawn = way(seed)
            seconds, number = time.process_time() - begun, effective(drawn)
            chains[way].append(drawn)
            rates[way].append(number / seconds)
            print(
                f"{way.__name__}: {number:.0f} effective samples, {seconds:.1f} CPU-s", flush=True
            )
    print(f"{'':12s} {'mean NUTS':>12s} {'mean MCMC':>12s} {'sigma':>10s}  difference, sigma")
    for name in NAMES:
        (nuts, sigma, one), (mcmc, _, two) = (moments(chains[s], name) for s in chains)
        difference, error = (nuts - mcmc) / sigma, np.hypot(one, two) / sigma
        line = f"{name:12s} {nuts:12.5f} {mcmc:12.5f} {sigma:10.5f}"
        print(f"{line}  {difference:+.3f} +- {error:.3f}")
    both = np.log([rates[way] for way in chains])
    ratio, mean = both[0] - both[1], np.exp(both.mean(1))
    error = np.exp(ratio.mean()) * ratio.std(ddof=1) / np.sqrt(runs)
    print(f"effective samples a CPU-second: NUTS {mean[0]:.1f}, MCMC {mean[1]:.1f}")
    print(f"NUTS over MCMC: {np.exp(ratio.mean()):.2f} +- {error:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
