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
        runtime=within(lambda c, w: c.train()),
    shell:
        "cnnlens train {params.path:q}"


# What a refining network learns from, many patches in a file. Members that share a folder of features
# make each once.
FEATURES_OWNER = {
    file: path
    for path, member in MEMBERS.items()
    if member.network.kind == "refined" and not member.baseline
    for file in all_features(member, "train", "validation")
}


def features_owner(wildcards):
    name = f"sky_{wildcards.index}_{wildcards.part}.h5"
    return FEATURES_OWNER[f"{wildcards.features}/{wildcards.set_name}/{name}"]


def features_costs(wildcards):
    return COSTS[str(MEMBERS[features_owner(wildcards)].products)]


def features_minutes(wildcards, threads, attempt):
    return costs.minutes(features_costs(wildcards).features(wildcards.set_name), threads, attempt)


rule features:
    input:
        lambda w: sky(MEMBERS[features_owner(w)], w.set_name, w.index),
    output:
        "{features}/{set_name}/sky_{index}_{part}.h5",
    wildcard_constraints:
        part=r"\d+",
    params:
        path=features_owner,
        index=lambda w: int(w.index),
        part=lambda w: int(w.part),
    resources:
        mem_mb=lambda w: features_costs(w).memory_mb(w.set_name),
        runtime=features_minutes,
    shell:
        "cnnlens features {params.path:q} --set {wildcards.set_name:q} --index {params.index}"
        " --part {params.part} --threads {threads}"


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
        mem_mb=lambda w: COSTS[w.products].memory_mb("train"),
        runtime=within(lambda c, w: c.mean_field()),
    shell:
        "cnnlens mean-field {params.path:q}"
