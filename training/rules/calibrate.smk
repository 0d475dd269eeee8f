rule bandpowers:
    input:
        lambda w: estimator(of(w)),
        sky=lambda w: sky(of(w), w.set_name, w.index),
    output:
        "{products}/bandpowers/{set_name}/sky_{index}.h5",
    params:
        path=path_of,
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens reconstruct {params.path:q} --set {wildcards.set_name:q} --index {params.index}"


# Skies at shifted omch2: the second order of the noise debias, and all that a forecast needs.
rule curvature:
    input:
        lambda w: estimator(of(w)),
    output:
        "{products}/curvature/sky_{index}.h5",
    params:
        path=path_of,
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens derivatives {params.path:q} --index {params.index} --shifted-only"


# The command makes the skies at shifted omch2 too, if they are not there: it waits for them, and
# their date says nothing of its own product.
rule derivatives:
    input:
        lambda w: estimator(of(w)),
        ancient("{products}/curvature/sky_{index}.h5"),
    output:
        "{products}/derivatives/sky_{index}.h5",
    params:
        path=path_of,
        index=lambda w: int(w.index),
    threads: 2
    resources:
        runtime=minutes(240),
    shell:
        "cnnlens derivatives {params.path:q} --index {params.index}"


# Test skies seen by an instrument that is off in one way at a time.
rule nuisances:
    input:
        lambda w: estimator(of(w)),
        sky=lambda w: sky(of(w), "test", w.index),
    output:
        "{products}/nuisances/sky_{index}.h5",
    params:
        path=path_of,
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens nuisances {params.path:q} --index {params.index}"


def power_skies(wildcards):
    """Those whose patches are kept: the derivatives' are made as they are measured."""
    if wildcards.what == "derivatives":
        return []
    return sky(of(wildcards), "test" if wildcards.what == "nuisances" else wildcards.what, wildcards.index)


# E and B of the patches themselves; no network is run.
rule power:
    input:
        power_skies,
    output:
        "{products}/power/{what}/sky_{index}.h5",
    wildcard_constraints:
        what=any_of(name for m in MEMBERS.values() for name in Power(Run(m)).counts()),
    params:
        path=path_of,
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens power {params.path:q} --what {wildcards.what:q} --index {params.index}"


# A test sky at the cosmologies to which the debias from the data is fitted; each is kept as it is made.
rule fit:
    input:
        lambda w: estimator(of(w)),
    output:
        touch("{products}/points/fit.done"),
    params:
        path=path_of,
    threads: 2
    resources:
        runtime=minutes(240),
    shell:
        "cnnlens points {params.path:q} --fit"


def survey_of(wildcards):
    return releases(of(wildcards))[f"{wildcards.products}/releases/{wildcards.release}.json"]


rule release:
    input:
        lambda w: of_release(of(w), survey_of(w)),
    output:
        "{products}/releases/{release}.json",
    params:
        path=path_of,
        survey=survey_of,
    shell:
        "cnnlens release make {params.path:q} --survey {params.survey:q}"
