rule sky:
    output:
        str(PIPELINE.sky_directory / "{set_name}" / "sky_{index}.h5"),
    threads: 2
    resources:
        mem_mb=6000,
        runtime=20,
    params:
        index=lambda wildcards: int(wildcards.index),
    shell:
        "cnnlens skies {CONFIG_FILE:q} --set {wildcards.set_name:q} --index {params.index}"
        " --threads {threads}"
