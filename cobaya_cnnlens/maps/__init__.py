"""A user's survey: maps, mask and depth of a part of the sky → tiles → κ̂ of each → a release.

:mod:`.grids` knows the two pixelisations, HEALPix and CAR, :mod:`.inputs` the files and what is
wrong with them, :mod:`.tiles` where tiles lie. :mod:`.plan` is the first product, on which the
others stand: :mod:`.patches`, Q and U of every tile, :mod:`.reconstruction`, κ̂ and its bandpowers,
and :mod:`.mosaic`, κ̂ on the sphere. :mod:`.simulated` sees simulated patches as the tiles,
:mod:`.calibration` measures all that a release rests on, :mod:`.weights` puts tiles together, and
:mod:`.assembly` makes the release.
"""
