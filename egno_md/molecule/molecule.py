"""The atoms of a model as arrays."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError

#: What each per-atom array is kept as; text of any length stays text.
_DTYPES = {"residues": np.int64, "chains": np.int64, "indices": np.int64, "charges": np.float64, "masses": np.float64}


@dataclass(frozen=True, eq=False)
class Molecule:
    """Atoms as arrays, all of length N: nothing else is known of them where a forecast is made.

    Made from an AtomGroup by :meth:`of`, or directly from arrays; what is not known is left out.

    Attributes
    ----------
    elements : ndarray of str (N,)
        Chemical symbols ("C", "Cl"); "" for virtual sites and beads.
    bonds : ndarray (B, 2), int64
        Pairs of atoms, the smaller index first, sorted, each once. For one atom per residue the links of the chain.
    loose : ndarray (K, 2), int64
        Pairs of atoms that the residue numbers say are joined and that are not bonded, where the topology does not
        know better: missing residues, or a torn chain.
    names, resnames, resids, icodes, chain_ids, segids : ndarray (N,) or None
        As in the topology, residue properties once for each atom; None where it does not have them.
    residues : ndarray (N,), int64
        Which residue: equal for the atoms of one, counted along the file, so that the difference of two residues of
        one chain is how far apart they are.
    chains : ndarray (N,), int64
        Which chain, from 0.
    charges : ndarray (N,) or None
        In e.
    masses : ndarray (N,) or None
        In u.
    indices : ndarray (N,), int64
        Number of each atom in its topology, for messages.
    source : str
        File name of the topology, for messages.

    Raises
    ------
    UsageError
        Arrays of different lengths, or bonds that name atoms which are not there.
    """

    elements: NDArray[np.str_]
    bonds: NDArray[np.int64] = None  # type: ignore[assignment]
    names: NDArray[np.str_] | None = None
    resnames: NDArray[np.str_] | None = None
    resids: NDArray[np.int64] | None = None
    icodes: NDArray[np.str_] | None = None
    chain_ids: NDArray[np.str_] | None = None
    segids: NDArray[np.str_] | None = None
    residues: NDArray[np.int64] = None  # type: ignore[assignment]
    chains: NDArray[np.int64] = None  # type: ignore[assignment]
    charges: NDArray[np.float64] | None = None
    masses: NDArray[np.float64] | None = None
    indices: NDArray[np.int64] = None  # type: ignore[assignment]
    loose: NDArray[np.int64] = None  # type: ignore[assignment]
    source: str = "in memory"

    def __post_init__(self) -> None:
        n_atoms = len(self.elements)
        defaults = {
            "residues": np.zeros(n_atoms, np.int64),
            "chains": np.zeros(n_atoms, np.int64),
            "indices": np.arange(n_atoms),
        }
        for field in fields(self):
            if field.name in ("bonds", "loose", "source"):
                continue
            value = getattr(self, field.name)
            value = defaults.get(field.name) if value is None else value
            if value is None:
                continue
            value = np.asarray(value, _DTYPES.get(field.name))
            if value.shape != (n_atoms,):
                raise UsageError(f"{field.name} have shape {value.shape}, the molecule has {n_atoms} atoms")
            object.__setattr__(self, field.name, value)
        for pairs in ("bonds", "loose"):
            given = getattr(self, pairs)
            object.__setattr__(self, pairs, sorted_bonds(() if given is None else given, n_atoms))

    @classmethod
    def of(cls, atoms: Any) -> Molecule:
        """The atoms of a Universe or AtomGroup; a Molecule as it is.

        Elements that the topology lacks are read off names and masses. Bonds are those of the topology; atoms that it
        leaves without any get theirs from the distances at the current frame, through the periodic box.

        Raises
        ------
        UsageError
            An UpdatingAtomGroup, or something that is none of these.
        DataError
            No atoms, an atom twice, or bonds to be found without coordinates.
        """
        if isinstance(atoms, cls):
            return atoms
        from .atoms import molecule_of

        return molecule_of(atoms)

    @property
    def n_atoms(self) -> int:
        return len(self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    @functools.cached_property
    def identity(self) -> str:
        """The same for the same atoms (number, names, residue names) with the same bonds, whatever the file."""
        columns = [column.tolist() for column in (self.resnames, self.names) if column is not None]
        return hashlib.sha256(repr([self.n_atoms, columns, self.bonds.tolist()]).encode()).hexdigest()[:16]

    def residue_label(self, k: int) -> str:
        """What a user calls the residue of atom `k`: ``ALA2``, with insertion code ``ALA52A``."""
        parts = (column[k] for column in (self.resnames, self.resids, self.icodes) if column is not None)
        return "".join(map(str, parts))

    def label(self, k: int) -> str:
        """What a user calls atom `k`: ``ALA2 CA (atom 8)``."""
        name = "" if self.names is None else self.names[k]
        return f"{self.residue_label(k)} {name} (atom {self.indices[k]})".strip()


def atom_label(atom: Any) -> str:
    """:meth:`Molecule.label` of an MDAnalysis Atom."""
    residue = "".join(str(getattr(atom, part, "")) for part in ("resname", "resid", "icode"))
    return f"{residue} {getattr(atom, 'name', '')} (atom {atom.index})".strip()


def sorted_bonds(bonds: ArrayLike, n_atoms: int) -> NDArray[np.int64]:
    """Pairs of atoms as (B, 2): the smaller index first, sorted, each once.

    Raises
    ------
    UsageError
        Pairs that name atoms which are not there.
    """
    pairs = np.asarray(bonds, np.int64).reshape(-1, 2)
    if len(pairs) and not (0 <= pairs.min() and pairs.max() < n_atoms):
        raise UsageError(f"bonds name atom {pairs.max()} (smallest {pairs.min()}); there are {n_atoms} atoms, from 0")
    return np.unique(np.sort(pairs, axis=1), axis=0).reshape(-1, 2)  # (B, 2)
