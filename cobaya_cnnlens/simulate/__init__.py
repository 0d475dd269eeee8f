"""Simulated skies, patches and instrument: theory spectra in, patch maps out."""
