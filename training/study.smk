# A study: several configurations, trained, measured and compared.
#   snakemake -s training/study.smk --config study=training/config/studies/seeds.yaml --cores all
# Its table ends up in products/.../STUDY.txt, beside its members' folders.
# Every path in a shell command is quoted (:q): it may hold blanks, quotes or $( ).
import re
from pathlib import Path

from cobaya_cnnlens.calibrate import bandpowers, curvature, nuisances
from cobaya_cnnlens.pipeline import mean_field, networks
from cobaya_cnnlens.pipeline import skies as sky_stage
from cobaya_cnnlens.pipeline.loading import load_study
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.validate import exhibits, nulls
from snakemake.exceptions import WorkflowError

if "study" not in config:
    raise WorkflowError("name a study: --config study=training/config/studies/seeds.yaml")
STUDY = str(config["study"])
MEMBERS = load_study(STUDY)
if any(set("{}") & set(f"{m.products}{m.sky_directory}") for m in MEMBERS.values()):
    raise WorkflowError(f"{STUDY}: Snakemake takes no paths with braces; rename products")
BY_PRODUCTS = {str(member.products): path for path, member in MEMBERS.items()}
TRAINED = [m for m in MEMBERS.values() if not (m.network.pretrained or m.baseline)]
FOLDER = next(iter(MEMBERS.values())).products.parent
TABLE = str(FOLDER / (Path(STUDY).stem + ".txt"))
NETWORKS = sorted(
    (m for m in MEMBERS.values() if not m.baseline), key=lambda m: m.instrument.noise_uk_arcmin
)
FORECAST = str(FOLDER / (Path(STUDY).stem + "_omch2.txt"))


# Members that share a folder of skies make each sky once.
def sky_rows():
    rows = {}
    for path, member in MEMBERS.items():
        for set_name in member.set_names():
            for index in range(member.set_size(set_name)):
                rows.setdefault(str(sky_stage.path(Run(member), set_name, index)), (path, set_name, index))
    return rows


SKIES = sky_rows()


def skies(member, *set_names):
    return [str(sky_stage.path(Run(member), s, i)) for s in set_names for i in range(member.set_size(s))]


def member(wildcards):
    return MEMBERS[BY_PRODUCTS[wildcards.products]]


def measured(path):
    return [
        str(bandpowers.path(Run(MEMBERS[path]), s, i))
        for s in ("validation", "test")
        for i in range(MEMBERS[path].set_size(s))
    ]


wildcard_constraints:
    products="|".join(re.escape(str(m.products)) for m in MEMBERS.values()),


rule all:
    input:
        TABLE,


rule table:
    input:
        [f for path in MEMBERS for f in measured(path)],
    output:
        TABLE,
    shell:
        "cnnlens compare {STUDY:q} > {output:q}"


# On request: snakemake … for_report: what `cnnlens report` shows of the networks beyond the table,
# and the cosmology of the one with the least noise.
rule for_report:
    input:
        TABLE,
        [str(exhibits.path(Run(m))) for m in NETWORKS],
        [str(nulls.path(Run(m), "curl", i)) for m in NETWORKS for i in range(m.nulls.skies)],
        [
            str(bandpowers.path(Run(NETWORKS[0]), f"survey-{name}", i))
            for name, survey in NETWORKS[0].surveys.items()
            for i in range(survey.skies)
        ],
        [str(curvature.path(Run(NETWORKS[0]), i)) for i in range(NETWORKS[0].skies.derivatives)],
        [str(nuisances.path(Run(NETWORKS[0]), i)) for i in range(NETWORKS[0].nuisances.skies)],


# On request: snakemake … forecast
rule forecast:
    input:
        TABLE,
    output:
        FORECAST,
    params:
        each=list(MEMBERS),
    threads: 2
    shell:
        "for f in {params.each:q}; do cnnlens derivatives \"$f\" --shifted-only || exit 1; done"
        " && cnnlens forecast {STUDY:q} > {output:q}"


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
            "cnnlens skies {params.owner:q} --set {params.set_name:q} --index {params.index}"
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
            "cnnlens train {params.path:q}"


def instrument_of(wildcards):
    """What has to be there before a member can reconstruct: its networks, or its mean field."""
    found = member(wildcards)
    return [str(p) for p in ([mean_field.path(Run(found))] if found.baseline else networks.paths(Run(found)))]


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
        "cnnlens mean-field {params.path:q}"


rule bandpowers:
    input:
        instrument_of,
        sky=lambda w: str(sky_stage.path(Run(member(w)), w.set_name, int(w.index))),
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
        "cnnlens reconstruct {params.path:q} --set {wildcards.set_name:q} --index {params.index}"


rule exhibit:
    input:
        instrument_of,
        lambda w: str(sky_stage.path(Run(member(w)), "test", 0)),
    output:
        "{products}/exhibit.h5",
    params:
        path=lambda w: BY_PRODUCTS[w.products],
    threads: 2
    shell:
        "cnnlens exhibit {params.path:q}"


rule nulls:
    input:
        lambda w: measured(BY_PRODUCTS[w.products]),
        lambda w: skies(member(w), "train", "test"),
    output:
        "{products}/nulls/curl/sky_{index}.h5",
    params:
        path=lambda w: BY_PRODUCTS[w.products],
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens nulltest {params.path:q} --index {params.index}"


rule derivatives:
    input:
        instrument_of,
    output:
        "{products}/curvature/sky_{index}.h5",
    params:
        path=lambda w: BY_PRODUCTS[w.products],
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens derivatives {params.path:q} --index {params.index}"


rule nuisances:
    input:
        instrument_of,
        lambda w: str(sky_stage.path(Run(member(w)), "test", int(w.index))),
    output:
        "{products}/nuisances/sky_{index}.h5",
    params:
        path=lambda w: BY_PRODUCTS[w.products],
        index=lambda w: int(w.index),
    threads: 2
    shell:
        "cnnlens nuisances {params.path:q} --index {params.index}"
