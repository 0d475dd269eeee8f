"""A user's maps, on their way to κ̂ and to a release: own patches, or the tiles of a survey.

:mod:`.fits_maps` and :mod:`.headers` read FITS files; :mod:`.patch_files` makes patches of them,
:mod:`.survey_files` a survey of maps on the grids of :mod:`.grids`. A :mod:`.plan` says where the
:mod:`.tiles` of a survey lie, and :mod:`.tile_maps` holds their Q and U; both kinds of patch are
cut from the sphere by :mod:`.cutting`. :mod:`.map_checks` and :mod:`.reconstruction` are the same
for both, and so is the :mod:`.bandpower_file`. :mod:`.calibration` simulates the tiles of a survey
(:mod:`.simulated`), :mod:`.weights` puts them together, and :mod:`.assembly` makes the release.
"""
