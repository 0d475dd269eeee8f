"""JSON schema of a release, for programs in other languages.

It follows from the fields that :mod:`.fields` declares; what is written here are the sections, and
the fields that are not arrays. A schema cannot say that lengths of one name agree, that edges
ascend and that covariances are symmetric: the reader checks that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .declarations import NUISANCE_MEANINGS, NUISANCES, VERSION, Group, Numbers, Sign
from .document import CONVENTIONS, FORMAT
from .fields import ARRAYS

TEXT, NUMBER, OBJECT = {"type": "string"}, {"type": "number"}, {"type": "object"}
COUNT = {"type": "integer", "maximum": 1_000_000_000}

SECTIONS = {
    "bins": "Where the bandpowers are.",
    "data": "The measurement.",
    "covariance": "The covariance of the data about the model is patch/n_patches + noise + "
    "derivatives. With 'debias' add xᵀKx times debias.error_bins, K = debias.error_terms, at the "
    "survey's amplitudes. With data.rotation add, over its surveys, Σ share² (4 α̂²σ² + 2σ⁴) times "
    "second_b second_b' of 'rotation', and the square of second_errors_b Σ share (α̂² − σ²) to the "
    "variances.",
    "calibration": "What turned the spectra of κ̂ into bandpowers, at the fiducial cosmology.",
    "windows": "Bandpower windows W_bL of the masked patch: signal_b = Σ_L W_bL C_L^κκ. They do "
    "not sum to one; do not normalise them.",
    "noise_bias": "How the noise bias changes with C_L^κκ: δ_j is the relative change of the "
    "power of band j, Σ (2L+1) C_L / Σ (2L+1) C_L^fid − 1.",
    "debias": "The debias from the survey's own E and B power: d' = d − G (p̂ − p^fid) − "
    "Σ_{i≤j} S_ij (v_i v_j − ⟨δv_i δv_j⟩/n_patches). The last "
    "six fields are present together.",
    "nuisances": "How the data change if the instrument differs from the simulated one: by "
    "Σ_i first_bi x_i + second_bi x_i².",
    "rotation": "What a rotation of the polarisation by α does: d' changes by second_b α². With "
    "data.rotation, d' has second_b (α̂² − σ²) taken off, of each survey its part.",
    "primary": "The power of E and B as data: p = p^fid + Σ_j ∂p/∂ ln C_j δ_j in the bands of both "
    "spectra.",
    "fixed": "Of d, before the debias from the data, for noise_debias: fixed.",
    "fiducial": "Spectra of the fiducial cosmology, raw C_l from l = 0, at least as long as "
    "windows and bands.",
}
# Sections that may hold other keys too: type and meaning of the known ones.
OPEN: dict[str, tuple[str, dict[str, tuple[dict[str, Any], str]]]] = {
    "theory": (
        "What made the fiducial spectra. The likelihood runs the user's theory at this cosmology "
        "and compares.",
        {
            "code": (TEXT, "Boltzmann code."),
            "version": (TEXT, "Its version."),
            "cosmology": (
                OBJECT | {"additionalProperties": NUMBER},
                "Cosmological parameters by CAMB's names.",
            ),
            "settings": (OBJECT, "Numerical settings by CAMB's names."),
        },
    ),
    "instrument": (
        "The instrument of the simulations, for which the network was trained.",
        {
            "noise": (NUMBER | {"minimum": 0}, "White noise of Q and of U each, in noise_unit."),
            "noise_unit": ({"const": "uK arcmin"}, "Unit of 'noise'."),
            "beam_fwhm": (
                NUMBER | {"minimum": 0},
                "FWHM of the Gaussian beam, or of the Gaussian that falls as a measured beam does, "
                "in beam_unit.",
            ),
            "beam_unit": ({"const": "arcmin"}, "Unit of 'beam_fwhm'."),
            "mask_taper_deg": (NUMBER, "Width of the mask's cosine taper on each side in degrees."),
            "patch_deg": (NUMBER, "Side of a patch in degrees."),
            "patch_pixels": ({"type": "integer"}, "Pixels along that side."),
        },
    ),
    "provenance": (
        "How the release was made.",
        {
            "configuration": (TEXT, "Name of the pipeline's configuration."),
            "network_sha256": (
                TEXT,
                "Hash that names the network, or the recipe of an estimator without one.",
            ),
            "estimator": (TEXT, "Name of the estimator."),
            "seed": ({"type": "integer"}, "Seed of all phases and noise."),
            "skies": (OBJECT, "Skies of each set, and which ones are the data."),
            "calibration": (OBJECT, "The release whose calibration a release of own maps uses."),
            "derivative_step": (
                NUMBER | {"minimum": 0},
                "Relative change of a band's power to which the derivatives were measured.",
            ),
            "rotation_step": (
                NUMBER | {"minimum": 0},
                "Rotation of the polarisation in degrees at which its effect was simulated.",
            ),
            "derivative_excursion_omch2": (
                NUMBER,
                "Change of ω_c at which the Monte-Carlo error of the model is taken.",
            ),
            "packages": (OBJECT, "Versions of Python and of the packages that computed it."),
            "survey": (OBJECT, "Plan, tiles and area of a survey."),
        },
    ),
}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a release.

    Returns
    -------
    a JSON document (draft 2020-12); "x-shape" and "x-unit" of an array are ours
    """
    properties: dict[str, Any] = {
        "format": {"const": FORMAT, "description": "Tells this kind of file from others."},
        "version": {"const": VERSION, "description": "A reader refuses any other version."},
        "name": TEXT | {"description": "Short name; exported files carry it."},
        "description": TEXT | {"description": "One sentence for people."},
    }
    properties |= {name: _section(name, text) for name, text in SECTIONS.items()}
    for name, (text, keys) in OPEN.items():
        known = {key: kind | {"description": meaning} for key, (kind, meaning) in keys.items()}
        properties[name] = OBJECT | {"description": text, "properties": known}
        if name == "instrument":
            properties[name]["required"] = ["noise_unit", "beam_unit"]
    properties["truth"] = {
        "description": "Cosmology of a mock survey; null for data.",
        "anyOf": [OBJECT | {"additionalProperties": NUMBER}, {"type": "null"}],
    }
    properties["blinding"] = OBJECT | {
        "description": "Of a blinded release: its bandpowers have a hidden offset.",
        "properties": {
            "key": TEXT | {"description": "Names the key that opens it."},
            "hidden": {
                "description": "The open bandpowers, the truth and the offset, encrypted; null of "
                "combined surveys.",
                "anyOf": [TEXT, {"type": "null"}],
            },
        },
        "required": ["key", "hidden"],
        "additionalProperties": False,
    }
    properties["digest"] = TEXT | {
        "description": "SHA-256 of the document without this field, as JSON with sorted keys and "
        "no spaces: an altered file is refused."
    }
    optional = ("debias", "rotation", "primary", "fixed", "blinding")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:cobaya_cnnlens:release:{VERSION}",
        "title": f"cobaya_cnnlens release, format version {VERSION}",
        "description": "Bandpowers of a survey with their calibration. Every number is finite; "
        "lengths that share a name in x-shape are equal.",
        **OBJECT,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
        "dependentRequired": {
            "debias": ["fixed", "rotation"],
            "fixed": ["debias"],
            "rotation": ["debias"],
            "primary": ["debias"],
        },
        "allOf": [
            {
                "if": {"required": ["blinding"]},
                "then": {"properties": {"truth": {"type": "null"}}},
            },
            _where("debias", "data", required=["power"], absent=["power", "rotation"]),
            _where("primary", "rotation", required=["power_second"], absent=["power_second"]),
        ],
    }


def _where(
    group: str, section: str, required: Sequence[str], absent: Sequence[str]
) -> dict[str, Any]:
    """Fields that a section has where a group is there, and those that it lacks where it is not."""
    return {
        "if": {"required": [group]},
        "then": {"properties": {section: {"required": list(required)}}},
        "else": {"properties": {section: {"properties": dict.fromkeys(absent, False)}}},
    }


def _section(name: str, text: str) -> dict[str, Any]:
    declared = {
        numbers.key.partition(".")[2]: numbers
        for numbers in ARRAYS.values()
        if numbers.key.startswith(f"{name}.")
    }
    properties = {key: _array(numbers) for key, numbers in declared.items()}
    second = [key for key, numbers in declared.items() if numbers.group is Group.SECOND_ORDER]
    conditional = {"data.power", "data.rotation", "rotation.power_second"}
    required = [key for key in declared if key not in second and f"{name}.{key}" not in conditional]
    others: dict[str, dict[str, Any]] = {
        "data": {
            "n_patches": COUNT
            | {"minimum": 1, "description": "Patches over which the bandpowers are averaged."}
        },
        "covariance": {
            "n_sim": COUNT
            | {
                "minimum": 4,
                "description": "Simulated patches behind 'patch', more than n_bins + 2; for "
                "Hartlap's factor, the t distribution and Hotelling's T².",
            }
        },
        "nuisances": {
            "names": {
                "const": list(NUISANCES),
                "description": "Order of the nuisances in all arrays: "
                + ", ".join(f"{name} ({meaning})" for name, meaning in NUISANCE_MEANINGS.items())
                + ".",
            }
        },
        "fiducial": {"unit": {"const": CONVENTIONS["fiducial.unit"], "description": "Of 'ee'."}},
        "windows": {
            "first": _array(
                Numbers("", ("n_bins",), "L", "Multipole of the first value.", integers=True)
            ),
            "values": _array(
                Numbers("", ("n_bins", "(any)"), "1", "W_bL of each bin, from first[b] on.")
            ),
        },
    }
    fixed = others.get(name, {})
    return OBJECT | {
        "description": text,
        "properties": fixed | properties,
        "required": [*fixed, *required],
        "dependentRequired": {key: second for key in second},
        "additionalProperties": False,
    }


def _array(numbers: Numbers) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "integer", "minimum": 0} if numbers.integers else dict(NUMBER)
    if numbers.sign is Sign.POSITIVE:
        item["exclusiveMinimum"] = 0
    if numbers.sign is Sign.NOT_NEGATIVE:
        item["minimum"] = 0
    for _ in numbers.shape:
        item = {"type": "array", "minItems": 1, "items": item}
    return item | {
        "description": numbers.meaning,
        "x-shape": list(numbers.shape),
        "x-unit": numbers.unit,
    }
