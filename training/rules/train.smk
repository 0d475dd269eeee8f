# A pretrained network (`network.pretrained`) is used as it is; an estimator without a network
# (`baseline`) has its mean field measured.
rule train:
    input:
        lambda w: all_skies(of(w), "train", "validation"),
    output:
        "{products}/network.keras",
    wildcard_constraints:
        products=any_of(m.products for m in TRAINED),
    params:
        path=path_of,
    threads: 16
    resources:
        mem_mb=12000,
        runtime=1440,
    shell:
        "cnnlens train {params.path:q}"


rule mean_field:
    input:
        lambda w: all_skies(of(w), "train"),
    output:
        "{products}/mean_field.h5",
    wildcard_constraints:
        products=any_of(m.products for m in MEMBERS.values() if m.baseline),
    params:
        path=path_of,
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "cnnlens mean-field {params.path:q}"
