"""The bundled checkpoints with their cards, and a sample trajectory of a protein that none of them has seen."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def sample() -> tuple[Path, Path]:
    """Topology (PDB) and trajectory (XTC) of the bundled sample.

    Returns
    -------
    topology, trajectory : Path
        Ubiquitin, 1231 atoms in implicit solvent at 300 K, a frame every ps; see ``models/sample/README.md``.

    Examples
    --------
    >>> import MDAnalysis as mda
    >>> from egno_md import EGNOSurrogate, sample
    >>> surrogate = EGNOSurrogate(mda.Universe(*map(str, sample()))).run()
    """
    folder = Path(str(resources.files(__name__))) / "sample"
    return folder / "ubiquitin.pdb", folder / "ubiquitin.xtc"
