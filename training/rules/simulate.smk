SKY = "{skies}/{set_name}/sky_{index}.h5"
sky_owner = owner_of(SKY)


rule sky:
    output:
        SKY,
    params:
        path=sky_owner,
        index=lambda w: int(w.index),
    threads: 2
    resources:
        mem_mb=lambda w: costs_of(sky_owner(w)).memory_mb(w.set_name),
        runtime=within(lambda c, w: c.sky(w.set_name), sky_owner),
    shell:
        "cnnlens skies {params.path:q} --set {wildcards.set_name:q} --index {params.index}"
        " --threads {threads}"
