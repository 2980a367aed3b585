"""The bundled checkpoints with their cards, and sample trajectories."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ..errors import UsageError

DEFAULT_MODEL = "ca-1ps"


def bundled_models() -> dict[str, Path]:
    """Names and files of the models that come with the package."""
    folder = Path(str(resources.files("egno_md"))) / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


_SAMPLES = {
    "ubiquitin": ("ubiquitin.pdb", "ubiquitin.xtc"),
    "chignolin": ("chignolin.pdb", "chignolin.xtc"),
    "chignolin-fine": ("chignolin.pdb", "chignolin-fine.xtc"),
}


def sample(name: str = "ubiquitin") -> tuple[Path, Path]:
    """Topology (PDB) and trajectory (XTC) of a bundled sample; see ``models/sample/README.md``.

    Parameters
    ----------
    name : {"ubiquitin", "chignolin", "chignolin-fine"}
        Ubiquitin: 1231 atoms, 80 frames, one per ps; a protein that no bundled network has seen (the
        elastic network of proteins was fitted to another run of it, in water). Chignolin: the 93 heavy
        atoms of the ten residues of CLN025, 1000 frames, one per ps; the fine one is the first tenth of the same run,
        1000 frames, one per 0.1 ps, at which a forecast of so small a protein is worth something. All in implicit
        solvent at 300 K, without a box.

    Returns
    -------
    topology, trajectory : Path

    Raises
    ------
    UsageError
        There is no sample of that name.

    Examples
    --------
    >>> import MDAnalysis as mda
    >>> from egno_md import EGNOSurrogate, sample
    >>> surrogate = EGNOSurrogate(mda.Universe(*map(str, sample()))).run()
    """
    if name not in _SAMPLES:
        raise UsageError(f"there is no sample {name!r}; known are {', '.join(_SAMPLES)}")
    topology, trajectory = (Path(str(resources.files(__name__))) / "sample" / file for file in _SAMPLES[name])
    return topology, trajectory
