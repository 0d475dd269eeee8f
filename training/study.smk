# A study: several configurations, trained, measured and compared.
#   snakemake -s training/study.smk --config study=training/config/studies/seeds.yaml --cores all
# Its table ends up in products/.../STUDY.txt, beside its members' folders.
from pathlib import Path

from cobaya_cnnlens.config import load_study

STUDY = config["study"]
MEMBERS = load_study(STUDY)
BY_PRODUCTS = {str(member.products): path for path, member in MEMBERS.items()}
TRAINED = [m for m in MEMBERS.values() if not (m.network.pretrained or m.baseline)]
FOLDER = next(iter(MEMBERS.values())).products.parent
TABLE = str(FOLDER / (Path(STUDY).stem + ".txt"))
FORECAST = str(FOLDER / (Path(STUDY).stem + "_omch2.txt"))


# Members that share a folder of skies make each sky once.
def sky_rows():
    rows = {}
    for path, member in MEMBERS.items():
        for set_name in ("train", "validation", "test"):
            for index in range(member.set_size(set_name)):
                rows.setdefault(str(member.sky_path(set_name, index)), (path, set_name, index))
    return rows


SKIES = sky_rows()


def skies(member, *set_names):
    return [str(member.sky_path(s, i)) for s in set_names for i in range(member.set_size(s))]


def member(wildcards):
    return MEMBERS[BY_PRODUCTS[wildcards.products]]


def measured(path):
    return [
        str(MEMBERS[path].bandpower_path(s, i))
        for s in ("validation", "test")
        for i in range(MEMBERS[path].set_size(s))
    ]


wildcard_constraints:
    products="|".join(map(str, (m.products for m in MEMBERS.values()))),


rule all:
    input:
        TABLE,


rule table:
    input:
        [f for path in MEMBERS for f in measured(path)],
    output:
        TABLE,
    shell:
        "cnnlens compare {STUDY} > {output}"


# On request: snakemake … forecast
rule forecast:
    input:
        TABLE,
    output:
        FORECAST,
    params:
        each=" ".join(f"'{path}'" for path in MEMBERS),
    threads: 2
    shell:
        "for f in {params.each}; do cnnlens derivatives \"$f\" --shifted-only; done"
        " && cnnlens forecast {STUDY} > {output}"


for sky_file, (sky_owner, sky_set, sky_index) in SKIES.items():

    rule:
        output:
            sky_file,
        params:
            owner=sky_owner,
            set_name=sky_set,
            index=sky_index,
        threads: 2
        resources:
            mem_mb=6000,
            runtime=20,
        shell:
            "cnnlens skies '{params.owner}' --set {params.set_name} --index {params.index}"
            " --threads {threads}"


if TRAINED:

    rule train:
        input:
            lambda w: skies(member(w), "train", "validation"),
        output:
            "{products}/network.keras",
        params:
            path=lambda w: BY_PRODUCTS[w.products],
        threads: 16
        resources:
            mem_mb=12000,
            runtime=1440,
        shell:
            "cnnlens train '{params.path}'"


def instrument_of(wildcards):
    """What has to be there before a member can reconstruct: its networks, or its mean field."""
    found = member(wildcards)
    return [str(p) for p in ([found.mean_field_path] if found.baseline else found.network_paths)]


rule mean_field:
    input:
        lambda w: skies(member(w), "train"),
    output:
        "{products}/mean_field.h5",
    params:
        path=lambda w: BY_PRODUCTS[w.products],
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "cnnlens mean-field '{params.path}'"


rule bandpowers:
    input:
        instrument_of,
        sky=lambda w: str(member(w).sky_path(w.set_name, int(w.index))),
    output:
        "{products}/bandpowers/{set_name}/sky_{index}.h5",
    params:
        path=lambda w: BY_PRODUCTS[w.products],
        index=lambda w: int(w.index),
    threads: 2
    resources:
        mem_mb=4000,
        runtime=20,
    shell:
        "cnnlens reconstruct '{params.path}' --set {wildcards.set_name} --index {params.index}"
