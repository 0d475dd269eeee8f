"""From a configuration to skies, networks and reconstructions: what is run, and where it lies."""
