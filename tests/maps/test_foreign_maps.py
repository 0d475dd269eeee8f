"""Maps that other people's tools write: in whatever spelling, order, unit and part of a file they
come, they are read as what they are, or refused with one line that says what to do."""

import bz2
import gzip
import importlib.util

import healpy
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from cobaya_cnnlens.errors import MapError
from cobaya_cnnlens.maps.grids import q_and_u, read_sky
from cobaya_cnnlens.maps.patch_files import parse_centres, read_maps
from cobaya_cnnlens.maps.survey_files import Sources, read_splits
from cobaya_cnnlens.maps.units import INVERSE_VARIANCE, LEVEL, TEMPERATURE, factor_of
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import PatchGeometry

NSIDE = 16
PIXELS = 12 * NSIDE**2
RAMP = np.arange(PIXELS) + 1.0
NEST = healpy.reorder(RAMP, r2n=True)
QU = {"Q": RAMP, "U": 2 * RAMP}
HOLE = slice(100, 120)
car = pytest.mark.skipif(importlib.util.find_spec("pixell") is None, reason="CAR maps need pixell")


def table(columns, unit="uK", drop=(), **cards):
    made = fits.BinTableHDU.from_columns(
        [fits.Column(name=k, format="D", array=v, unit=unit) for k, v in columns.items()]
    )
    known = {"PIXTYPE": "HEALPIX", "ORDERING": "RING", "NSIDE": NSIDE, "COORDSYS": "C"}
    made.header.update({**known, **cards})
    for key in drop:
        del made.header[key]
    return made


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Extensions after a primary one, which holds cards alone, or is an array."""
    monkeypatch.chdir(tmp_path)

    def written(*parts, primary=(), image=None, name="m.fits"):
        first = fits.PrimaryHDU(image)
        first.header.update(dict(primary))
        fits.HDUList([first, *parts]).writeto(name, overwrite=True)
        return name

    return written


def q_of(path):
    """Q in µK of the fifth pixel in ring order, and U by the COSMO sign."""
    return [float(m[5]) for m in q_and_u(read_sky(path, "QU"), None)]


# Keywords


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("POLCCONV", "IAU", [6, -12]),
        ("POLCCONV", "iau", [6, -12]),
        ("POLCCONV", "Cosmo", [6, 12]),
        ("TUNIT1", "mK", [6e3, 12e3]),
        ("BUNIT", "mK_{CMB}", [6e3, 12e3]),
        ("NSIDE", NSIDE, [6, 12]),
        ("PIXTYPE", "healpix", [6, 12]),
        ("ORDERING", "ring", [6, 12]),
    ],
)
def test_a_keyword_may_stand_in_the_primary_header(write, key, value, expected):
    part = table(QU, None if "UNIT" in key else "uK")
    part.header.remove(key, ignore_missing=True)
    cards = {key: value, **({"TUNIT2": value} if key == "TUNIT1" else {})}
    assert q_of(write(part, primary=cards)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("own", "primary"),
    [
        ({"POLCCONV": "IAU"}, {"POLCCONV": "COSMO"}),
        ({"COORDSYS": "GAL"}, {"COORDSYS": "C"}),
        ({"ORDERING": "NEST"}, {"ORDERING": "RING"}),
        ({"NSIDE": 16}, {"NSIDE": 32}),
        ({"BAD_DATA": -1.0}, {"BAD_DATA": 0.0}),
        ({}, {"BUNIT": "K"}),
    ],
)
def test_keywords_that_differ_are_refused_and_equal_ones_are_one(write, own, primary):
    with pytest.raises(MapError, match=r"own header and in the primary one; correct"):
        q_of(write(table(QU, **own), primary=primary))
    with pytest.raises(MapError, match="TUNIT1 is 'uK' and BUNIT 'K'; correct the wrong one"):
        q_of(write(table(QU, BUNIT="K")))
    same = {"COORDSYS": "Equatorial", "ORDERING": "Ring", "NSIDE": 16, "BUNIT": "uK_CMB"}
    assert q_of(write(table(QU), primary=same)) == [6, 12]


@pytest.mark.parametrize(
    ("word", "frame"),
    [
        *((word, "C") for word in ("c", "Celestial", "EQUATORIAL", "equ", "ICRS", "fk5", "J2000")),
        *((word, "G") for word in ("g", "Galactic", "GAL")),
        *((word, "E") for word in ("E", "ecliptic", "ECL")),
        *((word, None) for word in ("Custom", "Earth", "GLON", "FK4")),
    ],
)
def test_a_frame_is_a_whole_word(write, word, frame):
    path = write(table(QU, COORDSYS=word))
    if frame:
        assert read_sky(path, "QU").grid.frame == frame
        return
    with pytest.raises(MapError, match=rf"COORDSYS is '{word}'; it must be C, G or E"):
        read_sky(path, "QU")


@pytest.mark.parametrize("word", ["NEST", "nest", "Nested", "NESTED"])
def test_nested_maps_are_put_in_ring_order(write, word):
    assert q_of(write(table({"Q": NEST, "U": 2 * NEST}, ORDERING=word))) == [6, 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ["ORDERING"]}, "ORDERING is missing.* write RING or NESTED"),
        ({"ORDERING": "NUNIQ"}, "ORDERING is 'NUNIQ'; write"),
        ({"NSIDE": 32}, "NSIDE is 32, and there are 3072 pixels, not 12288"),
        ({"BAD_DATA": "none"}, "BAD_DATA is 'none'; it must be a number"),
        ({"NSIDE": "nan"}, "NSIDE is 'nan'; it must be a number"),
        ({"NSIDE": "inf"}, "NSIDE is 'inf'; it must be a number"),
        ({"NSIDE": 12, "ORDERING": "NEST"}, "NSIDE is 12; write that of the map, a power of two"),
        ({"PIXTYPE": "", "drop": ["NSIDE"]}, "no HEALPix table .* write those keywords into its"),
    ],
)
def test_what_a_header_does_not_say_is_refused(write, change, message):
    with pytest.raises(MapError, match=message):
        q_of(write(table(QU, **change)))


# Columns


@pytest.mark.parametrize("name", ["{}", "{}_STOKES", "{}-POLARISATION", "{}POL", "Stokes {}"])
def test_columns_are_found_by_whole_names(write, name):
    others = {"QQ_COV": -RAMP, "Q_ERR": -RAMP, "HITS_Q": -RAMP, "UU": -RAMP, "Q_STOKES_INP": -RAMP}
    columns = {**others, name.format("Q"): RAMP, name.format("U"): 2 * RAMP}
    assert q_of(write(table(columns))) == [6, 12]


def test_columns_that_are_not_there_or_may_both_be_it(write):
    with pytest.raises(MapError, match=r"\['Q_ERR', 'U_ERR'\] hold no Q and U; name them Q_POL"):
        q_of(write(table({"Q_ERR": RAMP, "U_ERR": RAMP})))
    with pytest.raises(MapError, match=r"\['Q', 'Q_STOKES'\] may both be Q"):
        q_of(write(table({**QU, "Q_STOKES": RAMP})))


def test_a_part_of_the_sky_needs_its_nside(write):
    part = table({"PIXEL": np.arange(4), "Q": RAMP[:4], "U": RAMP[:4]}, drop=["NSIDE"])
    with pytest.raises(MapError, match="NSIDE is missing, and 4 pixels are not known to be"):
        read_sky(write(part), "QU")


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("4A", np.full(PIXELS, "many")),
        ("M", RAMP * 1j),
        ("PD()", np.array([np.ones(2), np.ones(3)], dtype=object)),
    ],
)
def test_columns_of_no_numbers_are_refused_by_name(write, form, values):
    part = fits.BinTableHDU.from_columns(
        [fits.Column(name=k, format=form, array=values, unit="uK") for k in "QU"]
    )
    part.header.update(table(QU, drop=["TFORM1", "TFORM2"]).header.copy(strip=True))
    with pytest.raises(MapError, match=r"column Q is of TFORM1 '.*'; it must hold real numbers"):
        read_sky(write(part), "QU")


@pytest.mark.parametrize("name", ["PIXEL", "PIX", "pixel", "INDEX", "Pixel ID", "NUMBER"])
@pytest.mark.parametrize("nested", [False, True])
def test_pixel_numbers_of_a_part_of_the_sky(write, name, nested):
    numbers = np.arange(200, 100, -1)
    rings = healpy.nest2ring(NSIDE, numbers) if nested else numbers
    part = table(
        {name: numbers, "Q": RAMP[rings], "U": RAMP[rings]},
        **({"INDXSCHM": "EXPLICIT"} if name == "NUMBER" else {}),
        ORDERING="NESTED" if nested else "RING",
    )
    found = read_sky(write(part), "QU").planes[0]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(found)), np.sort(rings))
    np.testing.assert_array_equal(found[rings], RAMP[rings])
    part.data[name][0] = part.data[name][1]
    with pytest.raises(MapError, match="column of pixel numbers holds some twice"):
        read_sky(write(part), "QU")


@pytest.mark.parametrize("picture", [np.ones((9, 7)), np.ones((3, 9, 7))])
def test_a_picture_in_the_primary_extension_is_left_aside(write, picture):
    assert q_of(write(table(QU), image=picture, primary={"BUNIT": "counts"})) == [6, 12]


def test_planes_in_several_extensions(write):
    with pytest.raises(MapError, match=r"\['Q'\] and \['U'\] hold no Q and U in one table; put .*"):
        q_of(write(*(table({name: RAMP}) for name in "TQU")))
    images = [fits.ImageHDU(np.ones((4, 4)), name=name) for name in "TQU"]
    with pytest.raises(MapError, match=r"images \['T', 'Q', 'U'\] of one plane each: .*stack"):
        q_of(write(*images))
    with pytest.raises(MapError, match="2 extensions hold such a HEALPix map; write the one"):
        q_of(write(table(QU), table(QU)))


# Units


@pytest.mark.parametrize(
    ("wanted", "spellings"),
    [
        (
            TEMPERATURE,
            {1: "uK,µK,muK,MUK,uk,uK_CMB,uK_{CMB},uKcmb,\\mu K,$\\mu$K_{\\rm CMB}"},
        ),
        (TEMPERATURE, {1e3: "mK,mK_CMB,mKcmb,mk", 1e6: "K,K_CMB,K (CMB),K[CMB],Kelvin,10^6 uK"}),
        (INVERSE_VARIANCE, {1: "1/uK^2,uK^-2,uK^{-2},uK^(-2),uK**-2,uK-2,1/(uK)^2,(uK_CMB)^-2"}),
        (INVERSE_VARIANCE, {1: "uK_{CMB}^{-2},µK⁻²,1/uK2", 1e-12: "K^-2,1/K_CMB^2", 1e-6: "mK^-2"}),
        (LEVEL, {1: "uK arcmin,uK-arcmin,uK.arcmin,uK*arcmin,µK',uK_CMB-arcmin,uKarcmin"}),
        (LEVEL, {1e3: "mK arcmin,mK.arcmin", 1e6: "K-arcmin", 60: "uK deg"}),
    ],
)
def test_spellings_of_units(wanted, spellings):
    for factor, texts in spellings.items():
        for text in texts.split(","):
            assert factor_of(text, wanted) == pytest.approx(factor), text


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        (TEMPERATURE, "uK^2,uK arcmin,1/uK^2,K_RJ,MJy/sr,counts,1,Jy,-1 uK,dex(K)"),
        (INVERSE_VARIANCE, "uK^2,uK,1/uK,uK^-1,uK arcmin,hits,uK^-2 sr^-1"),
        (LEVEL, "uK,uK/arcmin,uK^2,uK^-2,arcmin,uK^2 arcmin^2"),
    ],
)
def test_units_of_another_dimension_are_refused(wanted, texts):
    for text in texts.split(","):
        with pytest.raises(ValueError, match=r"^(, a[n ].*)?$"):
            factor_of(text, wanted)


# Holes


@pytest.mark.parametrize(
    ("value", "cards"),
    [
        (0.0, {}),
        (healpy.UNSEEN, {}),
        (1e6 * healpy.UNSEEN, {}),
        (1e-6 * healpy.UNSEEN, {}),
        (3e20, {}),
        (np.nan, {}),
        (-999.0, {"BAD_DATA": -999.0}),
        (-7e-15, {}),  # a mask's rounding
        (1e-30, {}),
    ],
)
def test_holes_are_unseen_in_a_survey_and_refused_in_a_patch(write, value, cards):
    q, u = np.where(np.arange(PIXELS) == 105, value, [RAMP, 2 * RAMP])
    path = write(table({"Q": q, "U": u}, **cards))
    found = read_sky(path, "QU").planes
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(RAMP == 106, found.shape))
    longitude, latitude = healpy.pix2ang(NSIDE, 105, lonlat=True)
    with pytest.raises(MapError, match="1 unseen or non-finite pixels, or zero in Q and U, within"):
        read_maps(path, PatchGeometry(n_pixels=16), parse_centres([f"{longitude},{latitude}"]))
    if not abs(value) < 1e-9:  # alone, a zero is a number
        found = read_sky(write(table({"Q": q, "U": RAMP}, **cards)), "QU").planes
        assert np.isnan(found[:, 105]).all()
    else:
        assert np.isfinite(read_sky(write(table({"Q": q, "U": RAMP})), "QU").planes).all()


@pytest.mark.parametrize("column", ["Q", "U"])
@pytest.mark.parametrize(("blank", "zero"), [(-99, 0), (32767, 0), (0, 32768)])
def test_holes_of_a_table_of_integers(write, column, blank, zero):
    values = {name: RAMP.astype(int) + zero for name in "QU"}
    values[column][105] = blank + zero
    part = fits.BinTableHDU.from_columns(
        [
            fits.Column(name=k, format="J", array=v, unit="uK", null=blank, bzero=zero or None)
            for k, v in values.items()
        ]
    )
    part.header.update(PIXTYPE="HEALPIX", ORDERING="RING", NSIDE=NSIDE)
    found = read_sky(write(part), "QU").planes
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(RAMP == 106, found.shape))


def test_arrays_have_the_holes_of_maps(tmp_path):
    q = np.ones((1, 16, 16))
    for value in (np.nan, 1e25, -1e15, 1e-6 * healpy.UNSEEN):
        np.savez(tmp_path / "m.NPZ.npz", q=np.where(np.eye(16) > 0, value, q), u=q)
        (tmp_path / "m.NPZ.npz").rename(tmp_path / "m.NPZ")
        with pytest.raises(MapError, match="16 pixels of Q or U were not seen"):
            read_maps(tmp_path / "m.NPZ", PatchGeometry(n_pixels=16))


def test_a_map_that_is_zero_beyond_its_footprint_is_planned_there(write):
    """Of a level alone: its density is that of the footprint, not of the sky."""
    inside = np.arange(PIXELS) < 500
    path = write(table({"Q": RAMP * inside, "U": RAMP * inside}))
    [split] = read_splits(Sources((path,), level="5"))
    np.testing.assert_array_equal(split.density > 0, inside)


def test_a_frame_that_is_assumed_is_told(write):
    path = write(table(QU, drop=["COORDSYS"]))
    [split] = read_splits(Sources((path,), level="5"))
    assert split.assumed_frame
    [split] = read_splits(Sources((write(table(QU)),), level="5"))
    assert not split.assumed_frame
    mask = write(table({"M": 1.0 + 0 * RAMP}, "", COORDSYS="G"), name="mask.fits")
    path = write(table(QU, drop=["COORDSYS"]))
    with pytest.raises(MapError, match=r"m\.fits has no COORDSYS, which is taken as equatorial"):
        list(read_splits(Sources((path,), mask, level="5")))
    [maps] = [read_maps(path, PatchGeometry(n_pixels=16), parse_centres(["10,10"]))]
    assert maps.warnings == ("no COORDSYS in its header: taken as equatorial coordinates",)


# Noise and mask


def level_of(path, maps, option="ivar", unit=None):
    """Noise in µK-arcmin that a file of noise gives."""
    given = {"ivar": {"ivar": (path,)}, "level": {"level": path}}[option]
    [split] = read_splits(Sources((maps,), unit=unit, **given))
    return 1.0 / np.sqrt(float(np.median(split.density))) / ARCMIN


@pytest.mark.parametrize(
    ("unit", "scale"), [("uK^-2", 1), ("uK^{-2}", 1), ("1/K^2", 1e12), ("mK_CMB^-2", 1e6), ("", 1)]
)
def test_inverse_variance_in_its_unit(write, unit, scale):
    """13.7 µK-arcmin; without a unit of its own it has the maps'. Rounding below zero is zero."""
    maps = write(table(QU), name="maps.fits")
    ivar = healpy.nside2pixarea(NSIDE) / (13.7 * ARCMIN) ** 2 * scale + 0 * RAMP
    ivar[3] = -1e-7 * ivar[4]
    path = write(table({"II_IVAR": ivar}, unit or None), name="n.fits")
    assert level_of(path, maps) == pytest.approx(13.7, rel=1e-5)


OTHER_NOISE = ("N_OBS", "STDDEV", "COVARIANCE", "HITCOUNT", "noise", "Q_ERRORS", "TIME", "DEPTH")


@pytest.mark.parametrize(
    ("name", "unit", "message"),
    [
        ("QQ_COV", "uK^2", r"TUNIT1 of QQ_COV is 'uK\^2', a variance; .* give 1/variance"),
        ("RMS", "uK", r"TUNIT1 of RMS is 'uK', a temperature or its rms; .*1/rms"),
        ("N", "uK arcmin", "'uK arcmin', a noise level; .* as --level"),
        ("HITS", "counts", "TUNIT1 of HITS is 'counts'; an inverse variance is in"),
        ("QQ_COV", "", "'QQ_COV' without TUNIT1 is no inverse variance"),
        *((name, "", f"'{name}' without TUNIT1 is no inverse variance") for name in OTHER_NOISE),
    ],
)
def test_a_map_of_other_noise_is_no_inverse_variance(write, name, unit, message):
    maps = write(table(QU), name="maps.fits")
    with pytest.raises(MapError, match=message):
        level_of(write(table({name: RAMP}, unit or None), name="n.fits"), maps)


@pytest.mark.parametrize(
    ("unit", "expected"), [("uK arcmin", 2), ("mK.arcmin", 2000), ("", 2), ("uK-deg", 120)]
)
def test_levels_in_their_unit(write, unit, expected):
    maps = write(table(QU), name="maps.fits")
    path = write(table({"DEPTH": 2.0 + 0 * RAMP}, unit or None), name="n.fits")
    assert level_of(path, maps, "level") == pytest.approx(expected, rel=1e-5)
    for wrong in ("uK", "uK^2", "uK^-2"):
        path = write(table({"DEPTH": 2.0 + 0 * RAMP}, wrong), name="n.fits")
        with pytest.raises(MapError, match=r"TUNIT1 of DEPTH is .* a noise level is in uK arcmin"):
            level_of(path, maps, "level")


def test_three_planes_of_inverse_variance_are_named(write):
    maps = write(table(QU), name="maps.fits")
    path = write(table(dict.fromkeys(("II", "QQ", "UU"), RAMP), "uK^-2"), name="n.fits")
    with pytest.raises(MapError, match=r"\['II', 'QQ', 'UU'\]; it must hold one .*field=NUMBER"):
        level_of(path, maps)
    cards = {"CTYPE3": "STOKES", "CRVAL3": 1.0, "CRPIX3": 1.0, "CDELT3": 1.0}
    path = write(image=np.ones((3, 4, 4)), primary=cards, name="n.fits")
    with pytest.raises(MapError, match=r"3 planes \(I, Q, U\); it must hold one.*enmap"):
        level_of(path, maps)


@pytest.mark.parametrize(
    ("least", "most", "fine"),
    [(-7e-15, 1.0000017, True), (0, 1.01, False), (-0.01, 1, False), (0, 1.0001, False)],
)
def test_a_mask_may_be_rounded(write, least, most, fine):
    values = np.where(RAMP > 500, most, least)
    sources = Sources((write(table(QU)),), write(table({"M": values}), name="k.fits"), level="5")
    if fine:
        [split] = read_splits(sources)
        np.testing.assert_array_equal(split.density > 0, RAMP > 500)
        return
    with pytest.raises(
        MapError, match=rf"from {np.float32(least):.7g} to {np.float32(most):.7g}; they must"
    ):
        list(read_splits(sources))


# Files of other kinds


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.npy", None, r"is a NumPy array \(.npy\); we read FITS.*healpy.write_map"),
        ("m.fits", None, r"is a NumPy array \(.npy\); we read FITS"),
        ("m.h5", b"\x89HDF\r\n\x1a\n....", "is an HDF5 file; we read FITS"),
        ("m.g3", b"\x01\x02\x03", "is frames of spt3g; we read FITS.*maps.fitsio"),
        ("m.g3.gz", gzip.compress(b"\x01", mtime=0), "is frames of spt3g"),
        ("m.fits", b"# l  Q  U\n1 2 3\n", "is no FITS file: it begins with b'# l"),
        (
            "m.fits.gz",
            gzip.compress(b"\x93NUMPY\x01", mtime=0),
            r"is a NumPy array \(.npy\); we read FITS",
        ),
        ("m.tar.bz2", bz2.compress(b"maps/q.fits"), "is no FITS file: it begins with b'maps/"),
        ("m.fits.gz", gzip.compress(b"SIMPLE  =      T", mtime=0)[:9], "it is damaged or cut off"),
        ("", None, "is a folder; name a file in it"),
        ("m.fits", b"SIMPLE  =                    T", "it is damaged or cut off .*; restore it"),
    ],
)
@pytest.mark.parametrize("reader", [read_sky, lambda p: read_maps(p, PatchGeometry())])
def test_files_of_other_kinds_are_named(tmp_path, name, content, message, reader):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name:
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    with pytest.raises(MapError, match=message) as told:
        reader(path)
    assert ("restore it" in str(told.value)) == ("damaged" in message)


# Images

ROWS, COLUMNS, STEP = 60, 80, 0.5
PLAIN = {
    **{"CTYPE1": "RA---CAR", "CTYPE2": "DEC--CAR", "CRVAL1": 120.0, "CRVAL2": 0.0},
    **{"CRPIX1": 40.5, "CRPIX2": 20.25, "CDELT1": -STEP, "CDELT2": STEP},
    **{"BUNIT": "uK", "POLCCONV": "COSMO"},
}
STOKES_AXIS = {"CTYPE3": "STOKES", "CRPIX3": 1.0, "CDELT3": 1.0}


def planes(n):
    return np.arange(1.0, n + 1)[:, None, None] * np.ones((ROWS, COLUMNS))


@car
@pytest.mark.parametrize(
    ("n", "cards", "expected"),
    [
        (2, {}, [1, 2]),
        (3, {}, [2, 3]),
        (3, {**STOKES_AXIS, "CRVAL3": 2.0}, [1, 2]),  # Q, U, V
        (3, {**STOKES_AXIS, "CRVAL3": 2.0, "CRPIX3": 2.0}, [2, 3]),  # I, Q, U
        (4, {**STOKES_AXIS, "CRVAL3": 1.0}, [2, 3]),
        (2, {**STOKES_AXIS, "CRVAL3": 3.0, "CDELT3": -1.0}, [2, 1]),  # U, Q
        (2, {**STOKES_AXIS, "CRVAL3": 1.0}, r"2 planes \(I, Q\), without Q and U"),
        (2, {**STOKES_AXIS, "CRVAL3": 3.0}, r"2 planes \(U, V\), without Q and U"),
        (4, {}, "holds 4 planes, without Q and U"),
        (2, {"CTYPE3": "FREQ"}, "CTYPE3 is 'FREQ', of 2 planes"),
    ],
)
def test_planes_are_taken_by_their_stokes_number(write, n, cards, expected):
    path = write(image=planes(n), primary=PLAIN | cards)
    if isinstance(expected, str):
        with pytest.raises(MapError, match=expected):
            read_sky(path, "QU")
    else:
        np.testing.assert_array_equal(read_sky(path, "QU").planes[:, 7], expected)


@car
@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"CDELT1": STEP},
        {"CDELT2": -STEP},
        {"CD1_1": -STEP, "CD2_2": STEP, "CDELT1": None, "CDELT2": None},
        {"PC1_1": 0.5, "PC2_2": 0.5, "CDELT1": -2 * STEP, "CDELT2": 2 * STEP},
        {"PC1_1": -1.0, "PC1_2": 1e-17},
        {"LONPOLE": 0.0, "LATPOLE": 90.0},
        {"CRVAL1": -30.0, "CRPIX1": 340.5},
        {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR"},
        {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "COORDSYS": "galactic"},
        {"CUNIT1": "arcmin", "CDELT1": -60 * STEP, "CRVAL1": 7200.0},
        {"CRPIX1": 360.5, "NAXIS1": 720, "CRPIX2": 181.0, "NAXIS2": 361},
    ],
)
def test_pixels_of_a_separable_map_lie_where_its_header_says(write, cards):
    """By astropy's WCS of the whole header, pixel by pixel."""
    header = {k: v for k, v in (PLAIN | cards).items() if v is not None}
    shape = header.pop("NAXIS2", ROWS), header.pop("NAXIS1", COLUMNS)
    path = write(image=np.ones((2, *shape)), primary=header)
    grid = read_sky(path, "QU").grid
    assert grid.frame == ("G" if "CTYPE1" in cards else "C")
    y, x = np.mgrid[: shape[0], : shape[1]]
    longitude, latitude = np.radians(WCS(fits.getheader(path), naxis=2).wcs_pix2world(x, y, 0))
    at = grid.pixels_at(0.5 * np.pi - latitude, longitude % (2 * np.pi)).reshape(shape)
    away = np.abs(latitude) < np.radians(89.9)
    np.testing.assert_array_equal(at[away], (y * shape[1] + x)[away])


@car
@pytest.mark.parametrize(
    ("cards", "named"),
    [
        ({"PC1_1": 0.9986, "PC1_2": -0.0523, "PC2_1": 0.0523, "PC2_2": 0.9986}, "PC1_2"),
        ({"CD1_1": -STEP, "CD2_2": STEP, "CD1_2": 0.01, "CDELT1": None, "CDELT2": None}, "CD1_2"),
        ({"CROTA2": 3.0}, "CROTA2"),
        ({"CRVAL2": 40.0}, "CRVAL2"),
        ({"CRVAL2": -0.5}, "CRVAL2"),
        ({"PV1_2": 30.0}, "PV1_2"),
        ({"PV1_1": 10.0}, "PV1_1"),
        ({"LATPOLE": 0.0}, "LATPOLE"),
        ({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_2_0": 0.0}, "A_ORDER"),
        ({"CDELT1": "wide"}, "CDELT1"),
        ({"CRPIX2": None}, "CRPIX2"),
        ({"CTYPE1": "RA---CEA"}, "CTYPE1"),
        ({"RADESYS": "FK4"}, "RADESYS"),
        ({"EQUINOX": 1950.0}, "EQUINOX"),
        ({"COORDSYS": "G"}, "CTYPE1 is 'RA---CAR' and COORDSYS 'G'"),
        ({"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "COORDSYS": "C"}, "COORDSYS"),
        ({"CRPIX1": "nan"}, "CRPIX1 is 'nan'"),
        ({"CDELT1": -5.0}, "more than once around"),
        ({"CDELT2": 4.0}, "beyond a pole"),
        ({"CRPIX2": 220.0}, "beyond a pole"),
        ({"CUNIT1": "furlong"}, "CUNIT1"),
    ],
)
def test_a_map_that_is_not_separable_is_refused_by_its_keyword(write, cards, named):
    header = {k: v for k, v in (PLAIN | cards).items() if v is not None}
    with pytest.raises(MapError, match=rf"m\.fits: .*{named}"):
        read_sky(write(image=planes(2), primary=header), "QU")


@car
@pytest.mark.parametrize(
    "cards",
    [
        {"CDELT1": str(-STEP), "CDELT2": f" {STEP}"},
        {"CRVAL1": "120", "CRPIX1": "40.5"},
        {"CTYPE1": "ra---car", "CTYPE2": "Dec--Car"},
        {"CUNIT1": "degrees", "CUNIT2": "DEG"},
    ],
)
def test_headers_that_astropy_reads_otherwise_or_not(write, cards):
    """Of a number in quotes astropy makes its default, 1 degree."""
    plain = read_sky(write(image=planes(2), primary=PLAIN), "QU").grid
    assert read_sky(write(image=planes(2), primary=PLAIN | cards), "QU").grid == plain


@car
@pytest.mark.parametrize("picture", [np.ones((9, 7)), np.ones((3, 9, 7))])
def test_a_picture_before_an_image_is_left_aside(write, picture):
    part = fits.ImageHDU(planes(2), fits.Header(PLAIN))
    found = read_sky(write(part, image=picture), "QU")
    np.testing.assert_array_equal(found.planes[:, 7], [1, 2])


@car
def test_holes_of_a_plate_carree(write):
    """Zeros in both planes, and marks in either, of whatever unit; not a zero of one alone."""
    maps = planes(2)
    maps[:, 0, 3] = 0.0
    maps[0, 0, 4] = 0.0
    maps[1, 0, 5] = 1e6 * healpy.UNSEEN
    path = write(image=maps, primary=PLAIN)
    found = read_sky(path, "QU").planes
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(found).any(0)), [3, 5])
    with pytest.raises(MapError, match="POLCCONV is missing; write IAU or COSMO"):
        q_and_u(read_sky(write(image=maps, primary=PLAIN | {"POLCCONV": ""}), "QU"), None)
