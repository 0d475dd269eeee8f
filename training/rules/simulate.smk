# Members that share a folder of skies make each sky once: any of those that have it.
SKY_OWNER = {
    file: path
    for path, member in MEMBERS.items()
    for file in all_skies(member, *member.set_names())
}


def sky_minutes(wildcards, threads, attempt):
    owner = SKY_OWNER[f"{wildcards.skies}/{wildcards.set_name}/sky_{wildcards.index}.h5"]
    cost = COSTS[str(MEMBERS[owner].products)].sky(wildcards.set_name)
    return costs.minutes(cost, threads, attempt)


rule sky:
    output:
        "{skies}/{set_name}/sky_{index}.h5",
    params:
        path=lambda w, output: SKY_OWNER[output[0]],
        index=lambda w: int(w.index),
    threads: 2
    resources:
        mem_mb=6000,
        runtime=sky_minutes,
    shell:
        "cnnlens skies {params.path:q} --set {wildcards.set_name:q} --index {params.index}"
        " --threads {threads}"
