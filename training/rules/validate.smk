rule table:
    input:
        [file for m in MEMBERS.values() for file in all_bandpowers(m, "validation", "test")],
    output:
        TABLE,
    shell:
        "cnnlens evaluate {FILE:q} > {output:q}"


rule forecast:
    input:
        TABLE,
        [file for m in MEMBERS.values() for file in all_of(ShiftedSkies(Run(m)))],
    output:
        FORECAST,
    shell:
        "cnnlens evaluate {FILE:q} --table forecast > {output:q}"


rule noise_table:
    input:
        lambda w: all_bandpowers(of(w), "validation", "test"),
    output:
        "{products}/noise.txt",
    params:
        path=path_of,
    shell:
        "cnnlens evaluate {params.path:q} > {output:q}"


rule tables:
    input:
        lambda w: list(releases(of(w))),
    output:
        "{products}/tables.txt",
    params:
        path=path_of,
    shell:
        "cnnlens evaluate {params.path:q} > {output:q} && cnnlens evaluate {params.path:q} --table recovery >> {output:q}"


# Skies of omch2 drawn from a prior: none is kept, only its bandpowers.
rule coverage_sky:
    input:
        lambda w: estimator(of(w)),
    output:
        "{products}/coverage/sky_{index}.h5",
    params:
        path=path_of,
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens coverage {params.path:q} --index {params.index}"


rule coverage_table:
    input:
        lambda w: coverage_skies(of(w)),
        lambda w: of_release(of(w), of(w).first_survey),
    output:
        "{products}/coverage.txt",
    params:
        path=path_of,
    shell:
        "cnnlens coverage {params.path:q} --table-only > {output:q}"
