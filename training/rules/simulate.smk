SKY = "{skies}/{set_name}/sky_{index}.h5"
sky_owner = owner_of(SKY)


rule sky:
    output:
        SKY,
    params:
        path=sky_owner,
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens skies {params.path:q} --set {wildcards.set_name:q} --index {params.index}"
