# A pretrained network (`network.pretrained` in the configuration) is used as it is.
if PIPELINE.network.pretrained is None:

    rule train:
        input:
            skies("train"),
            skies("validation"),
        output:
            NETWORK,
        threads: 16
        resources:
            mem_mb=12000,
            runtime=1440,
        shell:
            "cnnlens train {CONFIG_FILE}"
