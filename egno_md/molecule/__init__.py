"""Atoms and frames as plain arrays in Angstrom; torch is not known here, MDAnalysis in :mod:`.atoms` alone."""
