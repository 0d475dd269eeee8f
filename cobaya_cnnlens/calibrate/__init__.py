"""Calibration: bandpowers of κ̂, its response, noise, covariance and derivatives."""
