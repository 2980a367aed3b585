"""The exit to mdtraj (nm, ps) and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import MDAnalysis as mda
import numpy as np
from MDAnalysis.exceptions import NoDataError

from ..errors import DataError, UsageError
from ..molecule.atoms import atom_elements, topology_bonds
from .clock import read_frame, trajectory_name
from .universe import attach

if TYPE_CHECKING:
    import mdtraj
    from numpy.typing import NDArray


def to_mdtraj(atoms: mda.Universe | mda.AtomGroup) -> mdtraj.Trajectory:
    """All frames of a Universe, or of some of its atoms, as an mdtraj.Trajectory (nm, ps).

    Names, residues, chains, elements (guessed from the names where unknown) and the bonds among the atoms go along.
    The frame that the Universe stands on is kept.

    Raises
    ------
    DataError
        Frames without positions.
    """
    import mdtraj

    group = atoms.atoms
    trajectory = group.universe.trajectory
    here = trajectory.frame
    xyz = np.empty((len(trajectory), len(group), 3), dtype=np.float32)
    times = np.empty(len(trajectory), dtype=np.float64)
    cells: list[NDArray[np.float32] | None] = []
    try:
        for i, ts in enumerate(trajectory):
            xyz[i] = group.positions / 10.0
            times[i] = ts.time
            cells.append(None if ts.dimensions is None else ts.dimensions.copy())
    except NoDataError as exc:
        raise DataError(f"frame {i} of {trajectory_name(trajectory)} holds no positions; leave it out") from exc
    finally:
        trajectory[here]
    result = mdtraj.Trajectory(xyz, _mdtraj_topology(group), time=times)
    if all(cell is not None for cell in cells):
        box = np.array(cells, dtype=np.float64)  # (F, 6)
        result.unitcell_lengths = box[:, :3] / 10.0
        result.unitcell_angles = box[:, 3:]
    return result


def _mdtraj_topology(group: mda.AtomGroup) -> mdtraj.Topology:
    import mdtraj
    from mdtraj.core.element import get_by_symbol, virtual

    def attribute(name: str, default: Any) -> Sequence[Any]:
        try:
            return list(getattr(group, name))
        except (AttributeError, NoDataError):
            return [default] * len(group)

    names = attribute("names", "X")
    resnames, resids = attribute("resnames", "UNK"), attribute("resids", 1)
    segids, chains = attribute("segids", ""), attribute("chainIDs", "")
    resindices = group.resindices
    topology = mdtraj.Topology()
    chain = residue = last_chain = last_residue = None
    for i, symbol in enumerate(atom_elements(group)):
        if (segids[i], chains[i]) != last_chain:
            last_chain, last_residue = (segids[i], chains[i]), None
            chain = topology.add_chain(chain_id=chains[i] or segids[i] or None)
        if resindices[i] != last_residue:
            last_residue = resindices[i]
            residue = topology.add_residue(str(resnames[i]), chain, resSeq=int(resids[i]), segment_id=str(segids[i]))
        try:
            element = get_by_symbol(symbol) if symbol else virtual
        except KeyError:
            element = virtual
        topology.add_atom(str(names[i]), element, residue)
    atom = list(topology.atoms)
    for i, j in topology_bonds(group):
        topology.add_bond(atom[i], atom[j])
    return topology


def source_of(
    given: Any, among: str = "an MDAnalysis Universe or AtomGroup or an mdtraj Trajectory"
) -> mda.Universe | mda.AtomGroup:
    """A Universe or an AtomGroup as it is, and an mdtraj.Trajectory as a Universe; `among` is what the message expects.

    Raises
    ------
    UsageError
        It is neither.
    DataError
        A Universe without a trajectory; and as of :func:`from_mdtraj`.
    """
    if type(given).__module__.partition(".")[0] == "mdtraj":
        return from_mdtraj(given)
    if isinstance(given, (mda.Universe, mda.AtomGroup)):
        if not hasattr(given.universe, "trajectory"):  # of a PSF file alone, for one
            raise DataError(
                "the Universe has no positions: load it with its trajectory, mda.Universe(topology, trajectory)"
            )
        _read_anew(given.universe.trajectory)
        return given
    has_atoms = isinstance(getattr(given, "atoms", None), mda.AtomGroup)
    raise UsageError(
        f"expected {among}, found {type(given).__name__}; "
        + ("give its .atoms" if has_atoms else "load files with mda.Universe(topology, trajectory)")
    )


def _read_anew(trajectory: Any) -> None:
    """Read the current frame again, with a warning where its atoms or its box have been changed since it was read."""
    here, ts = max(trajectory.frame, 0), trajectory.ts
    if not ts.has_positions:
        return
    positions, box = ts.positions.copy(), ts.dimensions
    ts = read_frame(trajectory, here)
    changed = [
        what
        for what, same in (
            ("positions", np.array_equal(positions, ts.positions, equal_nan=True)),
            ("box", (box is None) == (ts.dimensions is None) and (box is None or np.array_equal(box, ts.dimensions))),
        )
        if not same
    ]
    if changed:
        warnings.warn(
            f"{' and '.join(changed)} of the current frame ({here}) had been changed; the trajectory gives others, and "
            "those are taken, as in every analysis of MDAnalysis: to change it for good, call u.transfer_to_memory() "
            "first, or add a transformation (u.trajectory.add_transformations)",
            UserWarning,
            stacklevel=4,
        )


def from_mdtraj(trajectory: mdtraj.Trajectory, *, dt: float | None = None) -> mda.Universe:
    """Universe in memory of an mdtraj.Trajectory: Angstrom, its times, box, chains, residues, elements and bonds.

    Parameters
    ----------
    trajectory : mdtraj.Trajectory
    dt : float, optional
        Spacing of the frames in ps, in place of ``trajectory.time``. mdtraj numbers the frames of a DCD file, and of
        other files without times, instead of reading them. Such numbers are integers, where times that were read are
        floats: integers are used with a warning.

    Raises
    ------
    DataError
        No topology, no frame, or a spacing that is not a positive number.
    """
    topology = trajectory.topology
    if topology is None or trajectory.n_frames == 0:
        raise DataError("the mdtraj.Trajectory holds no topology or no frame; load it with top=")
    residues, chains = list(topology.residues), list(topology.chains)
    atoms = list(topology.atoms)
    universe = mda.Universe.empty(
        len(atoms),
        n_residues=len(residues),
        n_segments=len(chains),
        atom_resindex=[atom.residue.index for atom in atoms],
        residue_segindex=[residue.chain.index for residue in residues],
    )
    chain_ids = [getattr(chain, "chain_id", None) or "" for chain in chains]
    segids = [
        next((residue.segment_id for residue in chain.residues if residue.segment_id), chain_ids[chain.index])
        for chain in chains
    ]
    symbols = ["" if a.element is None or a.element.symbol == "VS" else a.element.symbol for a in atoms]
    universe.add_TopologyAttr("names", [atom.name for atom in atoms])
    universe.add_TopologyAttr("elements", symbols)
    universe.add_TopologyAttr("types", symbols)
    universe.add_TopologyAttr("masses", [0.0 if a.element is None else a.element.mass for a in atoms])
    universe.add_TopologyAttr("chainIDs", [chain_ids[atom.residue.chain.index] for atom in atoms])
    universe.add_TopologyAttr("resnames", [residue.name for residue in residues])
    universe.add_TopologyAttr("resids", [residue.resSeq for residue in residues])
    universe.add_TopologyAttr("segids", segids)
    bonds = sorted({(min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds})
    if bonds:
        universe.add_TopologyAttr("bonds", bonds)
    boxes = None
    if trajectory.unitcell_lengths is not None:
        boxes = np.hstack([trajectory.unitcell_lengths * 10.0, trajectory.unitcell_angles]).astype(np.float32)  # (F, 6)
    times = np.asarray(trajectory.time, dtype=np.float64)  # (F,)
    if dt is not None:
        if not (np.isfinite(dt) and dt > 0):
            raise DataError(f"dt={dt!r}: the frame spacing must be a positive number of ps")
        times = dt * np.arange(len(times))
    elif len(times) > 1 and np.asarray(trajectory.time).dtype.kind in "iu":
        warnings.warn(
            f"the frames of the mdtraj.Trajectory are at {times[0]:g}, {times[1]:g}, ... ps: mdtraj numbers the frames "
            f"of every DCD file, and of others without times, so {times[1] - times[0]:g} ps may not be true; set the "
            "true times, for a frame every 10 ps: trajectory.time = 10.0 * np.arange(trajectory.n_frames)",
            UserWarning,
            stacklevel=2,
        )
    attach(universe, trajectory.xyz * np.float32(10.0), times, boxes)
    return universe
