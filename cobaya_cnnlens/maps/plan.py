"""The plan of a survey: its tiles with their depth, holes and masks.

A plan is a YAML file for the user to read, and beside it a product of the same name (``.h5``) with
the inverse variance of every tile's pixels. The user may delete tiles from the YAML file. All else
in it must agree with the product.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import yaml

from .. import products
from ..errors import ConfigError, MapError
from ..files import atomic_write
from ..simulate.instrument import cosine_mask
from ..simulate.patches import PatchGeometry, point_patch
from .cutting import lmax_of
from .grids import Grid, HealpixGrid
from .headers import ASSUMED_FRAME, FRAMES
from .map_checks import band_warnings
from .survey_files import Sources, Split, check_coverage, digest_of, read_splits
from .tiles import Footprint, Tile, check_separate, choose_tiles, filling_tiles

KIND = "survey tiles"
ALGORITHM = 1
HEADER = "# Written by `cnnlens survey plan`. Tiles may be taken out, nothing else be changed.\n"


@dataclass(frozen=True)
class Plan:
    """A survey's tiles.

    Attributes
    ----------
    path : of the YAML
    sources : the files it was made from
    recipe : everything that determined it, with the files' digests
    geometry : of the tiles, without padding
    taper_deg : of their mask
    frame : of the coordinates, a key of :data:`~cobaya_cnnlens.maps.headers.FRAMES`
    lmax : to which multipole the maps' a_lm are good
    tiles : without overlap
    footprint : what was seen, tiles or not
    assumed_frame : whether a file does not say of which frame its coordinates are
    """

    path: Path
    sources: Sources
    recipe: dict[str, Any]
    geometry: PatchGeometry
    taper_deg: float
    frame: str
    lmax: int
    tiles: tuple[Tile, ...]
    footprint: Footprint
    assumed_frame: bool = False

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def identity(self) -> str:
        """Of the whole plan; tiles taken out do not change it."""
        return products.identity_of(self.recipe)

    @property
    def overlaps(self) -> bool:
        """Whether the tiles fill the tapers of another plan's, and overlap."""
        return "fills" in self.recipe

    @property
    def n_splits(self) -> int:
        return self.sources.n_splits

    @property
    def centres(self) -> np.ndarray:
        """(n, 2), colatitude and longitude in radians."""
        return np.array([tile.centre for tile in self.tiles])

    @property
    def area_deg2(self) -> float:
        """Seen within the tiles."""
        pixels = sum(int(tile.seen.sum()) for tile in self.tiles)
        return float(pixels * np.degrees(self.geometry.pixel) ** 2)

    @property
    def warnings(self) -> list[str]:
        """What may be wrong with the maps."""
        warned = []
        if self.assumed_frame:
            warned.append(f"a map has {ASSUMED_FRAME}; write COORDSYS if that is wrong")
        known = self.lmax if self.sources.maps else None
        return warned + band_warnings(known, self.geometry.nyquist)


def array_path(path: str | Path) -> Path:
    """Path of the arrays of a plan.

    Parameters
    ----------
    path : path of the plan (YAML)

    Returns
    -------
    path : of the product beside it
    """
    return Path(path).with_suffix(".h5")


def make_plan(
    path: str | Path,
    sources: Sources,
    geometry: PatchGeometry,
    taper_deg: float = 0.5,
    least: float = 0.6,
    like: Plan | None = None,
    fills: Plan | None = None,
) -> Plan:
    """Plan a survey and write the plan.

    Parameters
    ----------
    path : of the YAML to write
    sources : the survey's files
    geometry : of the patches that a network was trained on
    taper_deg : of their mask
    least : seen fraction of a tile that is kept
    like : a plan whose tiles are taken, as of another map of the same sky, or a simulated one
    fills : a plan whose tapers the tiles of this one fill; its tiles overlap (:mod:`.mosaic`)

    Returns
    -------
    plan : as it was written

    Raises
    ------
    MapError
        naming a file, the field and the mend; if no tile fits
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a plan is a YAML file; name it so, e.g. plan.yaml")
    if not 0.0 < least <= 1.0:
        raise ConfigError(f"--seen {least}: give a fraction above 0 and up to 1")
    flat = replace(geometry, pad=0)
    sources.check()
    recipe = {
        "survey_algorithm": ALGORITHM,
        "sources": sources.recipe(),
        "patch": {"size_deg": flat.size_deg, "n_pixels": flat.n_pixels, "taper_deg": taper_deg},
        "seen": least,
    }
    splits = tqdm(read_splits(sources), desc="splits", total=sources.n_splits, unit="split")
    # One map at a time is in memory.
    grids, densities, assumed = zip(
        *((split.grid, split.density, split.assumed_frame) for split in splits), strict=True
    )
    grid = grids[0]
    if sources.maps and sources.pixel_window and not isinstance(grid, HealpixGrid):
        raise MapError(
            f"{sources.maps[0]}: --pixel-window is for HEALPix maps; divide that of a CAR map out "
            "before, with pixell's enmap.apply_window(map, pow=-1), and leave it out"
        )
    seen = check_coverage(sources, [density > 0 for density in densities])
    footprint = Footprint.of(partial(_at, grid, seen), flat.size_deg)
    taper = cosine_mask(flat, taper_deg)
    tiles: list[Tile] = []
    if fills is not None:
        recipe["fills"] = fills.centres.round(9).tolist()
        centres = filling_tiles(footprint, fills.centres, flat.size_deg, taper_deg, least)
    elif like is None:
        centres = choose_tiles(footprint, flat.size_deg, taper_deg, least)
    else:
        centres = _centres_of(like, flat, grid.frame)
        recipe["centres"] = centres.round(9).tolist()
    for centre in tqdm(centres, desc="depth", unit="tile"):
        ivar = _pixel_ivar(grid, densities, seen, centre, flat)
        tile = Tile(len(tiles), centre, flat, taper, ivar)
        # The fraction by the footprint's points is good to a few hundredths only.
        if tile.seen_fraction >= least or (like is not None and tile.seen.any()):
            tiles.append(tile)
    if not tiles:
        raise MapError(f"no tile sees {100 * least:.0f}%; lower --seen, or take smaller patches")
    known = (grid.frame, lmax_of(grid, flat), tuple(tiles), footprint, any(assumed))
    plan = Plan(path, sources, recipe, flat, taper_deg, *known)
    _check_separate(plan)
    _write(plan, grid)
    return plan


def _centres_of(like: Plan, geometry: PatchGeometry, frame: str) -> np.ndarray:
    if (like.geometry, like.frame) != (geometry, frame):
        raise ConfigError(
            f"{like.path}: its tiles are of {like.geometry.size_deg:g} degrees, "
            f"{like.geometry.n_pixels} pixels, {FRAMES[like.frame]}, and {geometry.size_deg:g}, "
            f"{geometry.n_pixels}, {FRAMES[frame]} are asked for; leave --like out"
        )
    return like.centres


def _at(grid: Grid, seen: np.ndarray, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    pixels = grid.pixels_at(theta, phi)
    return seen[pixels] & (pixels >= 0)


def _pixel_ivar(
    grid: Grid,
    densities: Sequence[np.ndarray],
    seen: np.ndarray,
    centre: np.ndarray,
    geometry: PatchGeometry,
) -> np.ndarray:
    """Inverse variance of a patch's pixels, (n_splits, n, n) in 1/µK²: Δ² times the mean ρ of so
    many points of each that no pixel of the map is left out; zero if one of them was not seen."""
    parts = int(np.ceil(1.5 * geometry.pixel / grid.step))
    fine = PatchGeometry(geometry.size_deg, geometry.n_pixels * parts, pad=0)
    at = point_patch(centre, fine)
    n = geometry.n_pixels
    pixels = grid.pixels_at(at.theta, at.phi).reshape(n, parts, n, parts)
    inside = (seen[pixels] & (pixels >= 0)).all((1, 3))
    means = [density[pixels].mean((1, 3), dtype=float) for density in densities]
    ivar = np.where(inside, means, 0.0) * geometry.pixel**2
    return ivar.astype(np.float32)


def _write(plan: Plan, grid: Grid) -> None:
    arrays: dict[str, Any] = {
        "centres": plan.centres,
        "split_ivar": np.stack([tile.split_ivar for tile in plan.tiles]),
        "footprint": plan.footprint.pixels.astype(np.int64),
        "footprint_nside": np.int64(plan.footprint.nside),
        "frame": np.bytes_(plan.frame.encode()),
        "lmax": np.int64(plan.lmax),
        "assumed_frame": np.int64(plan.assumed_frame),
    }
    products.write_product(array_path(plan.path), KIND, plan.recipe, arrays, compress=True)
    content = {
        "sources": asdict(plan.sources),
        "recipe": json.loads(json.dumps(plan.recipe)),
        "pixels": grid.name,
        "coordinates": FRAMES[plan.frame],
        "area_deg2": round(plan.area_deg2, 2),
        "footprint_deg2": round(plan.footprint.area_deg2, 1),
        "tiles": [tile.summary() for tile in plan.tiles],
    }
    with atomic_write(plan.path) as partial:
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
        partial.write_text(HEADER + text)


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Parameters
    ----------
    path : path of the plan (YAML)

    Returns
    -------
    plan : with the tiles that the file still lists

    Raises
    ------
    ConfigError
        if the file is missing, is no plan, or was changed beyond taking tiles out
    ProductError
        if its arrays are missing, damaged, or of another plan
    MapError
        if tiles overlap
    """
    path = Path(path)
    content = _content(path)
    recipe = content["recipe"]
    with products.open_product(array_path(path), KIND, recipe) as product:
        arrays = {name: product.array(name) for name in product.names()}
    patch = recipe["patch"]
    geometry = PatchGeometry(patch["size_deg"], patch["n_pixels"], pad=0)
    taper = cosine_mask(geometry, patch["taper_deg"])
    tiles = []
    for entry in content["tiles"]:
        number = entry.get("tile") if isinstance(entry, dict) else None
        if not isinstance(number, int) or not 0 <= number < len(arrays["centres"]):
            raise ConfigError(
                f"{path}: key 'tiles' holds a tile {number!r:.40}; there are 0 to "
                f"{len(arrays['centres']) - 1}: run `cnnlens survey plan` again"
            )
        ivar = arrays["split_ivar"][number]
        tile = Tile(number, arrays["centres"][number], geometry, taper, ivar)
        wrong = products.differences(entry, tile.summary())
        if wrong:
            raise ConfigError(
                f"{path}: tile {number} was changed: {'; '.join(wrong)}; tiles may be taken out, "
                "not moved: run `cnnlens survey plan` again"
            )
        tiles.append(tile)
    numbers = [tile.number for tile in tiles]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(f"{path}: key 'tiles' is empty or holds a tile twice; take that out")
    footprint = Footprint(int(arrays["footprint_nside"]), arrays["footprint"])
    sources = content["sources"]
    lists = {key: tuple(sources[key]) for key in ("maps", "ivar")}
    frame = bytes(arrays["frame"]).decode()
    plan = Plan(
        path,
        Sources(**{**sources, **lists}),
        recipe,
        geometry,
        patch["taper_deg"],
        frame,
        int(arrays["lmax"]),
        tuple(tiles),
        footprint,
        bool(arrays.get("assumed_frame", False)),
    )
    _check_separate(plan)
    return plan


def _check_separate(plan: Plan) -> None:
    if not plan.overlaps:
        check_separate(plan.centres, plan.geometry.size_deg, str(plan.path), "tiles")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
        sources = Sources(**content["sources"])
        whole = set(content) >= {"recipe", "tiles"} and isinstance(sources.maps, list)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run `cnnlens survey plan`") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: is no plan of a survey ({type(error).__name__}); run `cnnlens survey plan`"
        ) from None
    if not whole or not isinstance(content["tiles"], list):
        raise ConfigError(f"{path}: is no plan of a survey; run `cnnlens survey plan` again")
    return content


def check_sources(plan: Plan) -> None:
    """Refuse a plan whose files are not those it was made from.

    Parameters
    ----------
    plan : the survey's plan

    Raises
    ------
    MapError
    """
    plan.sources.check()
    if not plan.sources.maps:
        raise MapError(
            f"{plan.path}: the plan of a footprint alone; plan again with the survey's maps"
        )
    kept = plan.recipe["sources"]
    for key in ("maps", "ivar", "mask"):
        names, digests = getattr(plan.sources, key), kept[key]
        pairs = zip(names, digests, strict=True) if key != "mask" else [(names, digests)]
        for name, digest in pairs:
            if name is not None and digest_of(name) != digest:
                raise MapError(
                    f"{name}: is not the file that {plan.path} was made from; restore it, or plan "
                    "again"
                )


def splits_of(plan: Plan, chosen: Collection[int]) -> Iterable[Split]:
    """Read the maps of some splits, one after another.

    Parameters
    ----------
    plan : the survey's plan
    chosen : numbers of the splits

    Returns
    -------
    splits : an iterator over the maps

    Raises
    ------
    MapError
    If a file is not the one that the plan was made from.
    """
    check_sources(plan)
    return read_splits(plan.sources, chosen)
