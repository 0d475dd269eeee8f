rule bandpowers:
    input:
        sky=str(PIPELINE.sky_directory / "{set_name}" / "sky_{index}.h5"),
        network=NETWORK,
    output:
        str(PIPELINE.products / "bandpowers" / "{set_name}" / "sky_{index}.h5"),
    threads: 2
    resources:
        mem_mb=4000,
        runtime=20,
    params:
        index=lambda wildcards: int(wildcards.index),
    shell:
        "cnnlens reconstruct {CONFIG_FILE:q} --set {wildcards.set_name:q} --index {params.index}"


rule derivatives:
    input:
        NETWORK,
    output:
        str(PIPELINE.products / "derivatives" / "sky_{index}.h5"),
        str(PIPELINE.products / "curvature" / "sky_{index}.h5"),
    threads: 2
    resources:
        mem_mb=10000,
        runtime=240,
    params:
        index=lambda wildcards: int(wildcards.index),
    shell:
        "cnnlens derivatives {CONFIG_FILE:q} --index {params.index} --threads {threads}"


# Test skies seen by an instrument that is off in one way at a time.
rule nuisances:
    input:
        sky=str(PIPELINE.sky_directory / "test" / "sky_{index}.h5"),
        network=NETWORK,
    output:
        str(PIPELINE.products / "nuisances" / "sky_{index}.h5"),
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        index=lambda wildcards: int(wildcards.index),
    shell:
        "cnnlens nuisances {CONFIG_FILE:q} --index {params.index}"


rule release:
    input:
        all_bandpowers("validation"),
        all_bandpowers("test"),
        all_derivatives(),
        all_nuisances(),
        lambda wildcards: all_bandpowers(f"survey-{wildcards.survey}"),
    output:
        str(PIPELINE.products / "releases" / (PIPELINE.name + "_{survey}.json")),
    shell:
        "cnnlens release make {CONFIG_FILE:q} --survey {wildcards.survey:q}"


# Skies of omch2 drawn from a prior: none is kept, only its bandpowers.
rule coverage_sky:
    input:
        NETWORK,
    output:
        str(PIPELINE.products / "coverage" / "sky_{index}.h5"),
    threads: 2
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        index=lambda wildcards: int(wildcards.index),
    shell:
        "cnnlens coverage {CONFIG_FILE:q} --index {params.index} --threads {threads}"


if PIPELINE.surveys:

    rule coverage:
        input:
            [str(coverage.path(RUN, i)) for i in range(PIPELINE.coverage.skies)],
            all_bandpowers("validation"),
            all_bandpowers("test"),
            all_derivatives(),
            all_nuisances(),
            all_bandpowers(f"survey-{next(iter(PIPELINE.surveys))}"),
        output:
            str(PIPELINE.products / "coverage.txt"),
        shell:
            "cnnlens coverage {CONFIG_FILE:q} --table-only > {output:q}"


# Reconstruction noise alone, for a network that is not to become a release.
rule noise:
    input:
        all_bandpowers("validation"),
        all_bandpowers("test"),
    output:
        str(PIPELINE.products / "noise.txt"),
    shell:
        "cnnlens evaluate {CONFIG_FILE:q} > {output:q}"


rule tables:
    input:
        releases(),
    output:
        str(PIPELINE.products / "tables.txt"),
    shell:
        "cnnlens evaluate {CONFIG_FILE:q} > {output:q} && cnnlens recover {CONFIG_FILE:q} >> {output:q}"
