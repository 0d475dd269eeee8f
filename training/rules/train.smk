# An estimator without a network (`baseline` in the configuration) has its mean field measured; a
# pretrained network (`network.pretrained`) is used as it is.
if PIPELINE.baseline:

    rule mean_field:
        input:
            all_skies("train"),
        output:
            NETWORK,
        threads: 2
        resources:
            mem_mb=4000,
            runtime=60,
        shell:
            "cnnlens mean-field {CONFIG_FILE:q}"

elif PIPELINE.network.pretrained is None:

    rule train:
        input:
            all_skies("train"),
            all_skies("validation"),
        output:
            NETWORK,
        threads: 16
        resources:
            mem_mb=12000,
            runtime=1440,
        shell:
            "cnnlens train {CONFIG_FILE:q}"
