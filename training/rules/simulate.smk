# Members that share a folder of skies make each sky once: any of those that have it.
SKY_OWNER = {
    file: path
    for path, member in MEMBERS.items()
    for file in all_skies(member, *member.set_names())
}


def sky_costs(wildcards):
    owner = SKY_OWNER[f"{wildcards.skies}/{wildcards.set_name}/sky_{wildcards.index}.h5"]
    return COSTS[str(MEMBERS[owner].products)]


def sky_minutes(wildcards, threads, attempt):
    return costs.minutes(sky_costs(wildcards).sky(wildcards.set_name), threads, attempt)


rule sky:
    output:
        "{skies}/{set_name}/sky_{index}.h5",
    params:
        path=lambda w, output: SKY_OWNER[output[0]],
        index=lambda w: int(w.index),
    threads: 2
    resources:
        mem_mb=lambda w: sky_costs(w).memory_mb(w.set_name),
        runtime=sky_minutes,
    shell:
        "cnnlens skies {params.path:q} --set {wildcards.set_name:q} --index {params.index}"
        " --threads {threads}"
