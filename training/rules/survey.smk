# A survey: its plan and its configuration give a release, and null tests of its own maps.
#   snakemake -s training/Snakefile --cores all --config pipeline=survey.yaml survey=s.yaml
# `blind=key.txt` blinds the release by the key in that file; `simulations=sims.yaml` calibrates it by
# the experiment's own simulations.
# Each stage shares its tiles or simulations evenly among `jobs` jobs, 8 unless --config says more.
from cobaya_cnnlens.cli.runs import blinding_key
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps.calibration import EACH, SurveyCalibration
from cobaya_cnnlens.maps.cost import hours_table
from cobaya_cnnlens.maps.plan import read_plan
from cobaya_cnnlens.products import identity_of

if STUDY:
    raise WorkflowError(f"{FILE}: a survey takes one configuration; name a member, {FILE}#MEMBER")
PLAN = Path(config["survey"])
SURVEY = str(PLAN.with_suffix(""))
if set("{}") & set(SURVEY):
    raise WorkflowError(f"{PLAN}: Snakemake takes no paths with braces; rename the plan")
if (JOBS := int(config.get("jobs", 8))) < 1:
    raise WorkflowError(f"jobs={JOBS}: give one or more")
BLIND, SIMULATIONS = (
    [f"--{name}", config[name]] if name in config else [] for name in ("blind", "simulations")
)
# Snakemake removes a release before its command, which could refuse to replace a blinded one, and
# keeps an open one that is newer than what it is made of.
RELEASE = Path(SURVEY) / "release.json"
if not BLIND:
    blinding_key(RELEASE, None)
elif RELEASE.exists() and not read_release(RELEASE).blinding:
    raise WorkflowError(f"{RELEASE}: is open; remove it, and the workflow makes a blinded one")
planned = read_plan(PLAN)
patches = int(config.get("patches", EACH * len(planned.tiles)))
calibration = SurveyCalibration(Run(MEMBERS[FILE]), planned, Path(SURVEY), patches)
calibration.check()
if workflow.is_main_process:
    print(hours_table(calibration), file=sys.stderr)
# What was made of other tiles, patches or simulations lies in another folder, and is no reason to stop.
JOB_FOLDER = "{}/jobs/{}".format(
    SURVEY,
    identity_of(
        {
            "plan": planned.identity,
            "tiles": [tile.number for tile in planned.tiles],
            "patches": patches,
            "simulations": SIMULATIONS,
        }
    )[:8],
)


def done(stage, *numbers):
    return [f"{JOB_FOLDER}/{stage}_{number}_of_{JOBS}.done" for number in numbers]


def every(stage):
    return done(stage, *range(1, JOBS + 1))


# The first job cuts the tiles from the maps, which the others read.
rule survey_tiles:
    input:
        estimator(MEMBERS[FILE]),
        lambda w: [] if w.number == "1" else done("reconstruct", 1),
    output:
        touch(f"{JOB_FOLDER}/reconstruct_{{number}}_of_{JOBS}.done"),
    threads: 2
    shell:
        "cnnlens survey reconstruct {PLAN:q} --config {FILE:q} --job {wildcards.number}/{JOBS}"


rule survey_bandpowers:
    input:
        every("reconstruct"),
    output:
        f"{SURVEY}/bandpowers.h5",
    threads: 2
    shell:
        "cnnlens survey reconstruct {PLAN:q} --config {FILE:q}"


rule survey_simulations:
    input:
        estimator(MEMBERS[FILE]),
        [sky(MEMBERS[FILE], *of_set) for of_set in calibration.skies(calibration.parts)],
    output:
        touch(f"{JOB_FOLDER}/calibrate_{{number}}_of_{JOBS}.done"),
    threads: 2
    resources:
        runtime=minutes(240),
    shell:
        "cnnlens survey calibrate {PLAN:q} --config {FILE:q} --patches {patches}"
        " {SIMULATIONS:q} --job {wildcards.number}/{JOBS}"


rule survey_calibration:
    input:
        every("calibrate"),
    output:
        f"{SURVEY}/calibration.h5",
    threads: 2
    shell:
        "cnnlens survey calibrate {PLAN:q} --config {FILE:q} --patches {patches} {SIMULATIONS:q}"


rule survey_release:
    input:
        f"{SURVEY}/bandpowers.h5",
        f"{SURVEY}/calibration.h5",
    output:
        f"{SURVEY}/release.json",
    shell:
        "cnnlens survey release {PLAN:q} --config {FILE:q} {SIMULATIONS:q} {BLIND:q}"


# The first job measures the survey's power of all tiles, which the simulations of the others take.
rule survey_nulls_of_tiles:
    input:
        f"{SURVEY}/bandpowers.h5",
        lambda w: [] if w.number == "1" else done("nulls", 1),
    output:
        touch(f"{JOB_FOLDER}/nulls_{{number}}_of_{JOBS}.done"),
    threads: 2
    shell:
        "cnnlens survey nulls {PLAN:q} --config {FILE:q} --job {wildcards.number}/{JOBS}"


rule survey_nulls:
    input:
        every("nulls"),
        f"{SURVEY}/release.json",
    output:
        f"{SURVEY}/nulls.txt",
    params:
        release=f"{SURVEY}/release.json",
    shell:
        "cnnlens survey nulls {PLAN:q} --config {FILE:q} --survey-release {params.release:q}"
