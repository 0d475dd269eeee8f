# A pretrained network (`network.pretrained`) is used as it is; an estimator without a network
# (`baseline`) has its mean field measured.
rule train:
    input:
        lambda w: learned_from(of(w)),
    output:
        "{products}/network.keras",
    wildcard_constraints:
        products=any_of(m.products for m in TRAINED),
    params:
        path=path_of,
    threads: 16
    resources:
        mem_mb=12000,
        runtime=minutes(720),
    shell:
        "cnnlens train {params.path:q}"


# What a refining network learns from, many patches in a file.
FEATURES = "{features}/{set_name}/sky_{index}_{part}.h5"
features_owner = owner_of(FEATURES)


rule features:
    input:
        lambda w: sky(MEMBERS[features_owner(w)], w.set_name, w.index),
    output:
        FEATURES,
    wildcard_constraints:
        part=r"\d+",
    params:
        path=features_owner,
        index=lambda w: int(w.index),
        part=lambda w: int(w.part),
    shell:
        "cnnlens features {params.path:q} --set {wildcards.set_name:q} --index {params.index}"
        " --part {params.part}"


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
    shell:
        "cnnlens train {params.path:q}"
