"""Files of frames, written whole or not at all, and the topology of what was written."""

from __future__ import annotations

import contextlib
import math
import os
import string
import warnings
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import MDAnalysis as mda
import numpy as np
from MDAnalysis.lib.mdamath import triclinic_vectors

from ..errors import DataError, OutputError, UsageError
from ..files import part_of
from ..molecule.atoms import atom_elements, bonds_among, chain_numbers
from .clock import time_tolerance
from .formats import Format, format_of
from .preflight import StrPath
from .universe import checked_frames, in_memory_universe

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Frames:
    """What every frame of a file must be, however it is written.

    Parameters
    ----------
    path, n_atoms, dt, start_time
        See :class:`FrameWriter`.

    Raises
    ------
    UsageError
        A suffix that no format has, or numbers that cannot be right.
    """

    def __init__(self, path: StrPath, n_atoms: int, *, dt: float, start_time: float = 0.0) -> None:
        self.path = Path(path)
        self.n_atoms = n_atoms
        self.dt = float(dt)
        self.start_time = float(start_time)
        self.n_frames = 0
        self._format = format_of(self.path)
        if n_atoms < 1:
            raise UsageError(f"n_atoms={n_atoms}: a frame needs an atom at least")
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise UsageError(f"dt={dt!r}: the frame spacing must be a positive number of ps")
        if not math.isfinite(self.start_time):
            raise UsageError(f"start_time={start_time!r} is not a time in ps")
        self._periodic = False

    def checked(
        self, positions: ArrayLike, box: ArrayLike | None, time: float | None, frame: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float32] | None, float]:
        """Positions (N, 3), box (6,) or None, and time of a frame as they are written; errors as in `write`."""
        xyz = np.asarray(positions, dtype=np.float64)
        if xyz.shape != (self.n_atoms, 3):
            raise UsageError(f"positions of frame {frame} have the shape {xyz.shape}; expected ({self.n_atoms}, 3)")
        if not np.isfinite(xyz).all():
            atom = int(np.flatnonzero(~np.isfinite(xyz).all(axis=1))[0])
            raise OutputError(
                f"frame {frame} was not written to {self.path}: the position of atom {atom} is {xyz[atom].tolist()}; "
                "the forecast broke down, ask for a shorter horizon or another model"
            )
        self._require_range(xyz, frame)
        cell = self._cell(box, frame)
        expected_time = self.start_time + frame * self.dt
        if time is None:
            time = expected_time
        elif not math.isfinite(time):
            raise UsageError(f"frame {frame} has the time {time!r}")
        elif self._format.even and abs(time - expected_time) > time_tolerance(self.dt, np.array([time])):
            raise UsageError(
                f"frame {frame} is at {time:g} ps, but a {self._suffix} file holds evenly spaced frames only, here at "
                f"{expected_time:g} ps; write XTC, which stores the time of each frame"
            )
        return xyz, cell, time

    def _require_range(self, xyz: NDArray[np.float64], frame: int) -> None:
        largest, limit = np.abs(xyz).max(), self._format.largest
        if largest >= limit:
            raise OutputError(
                f"frame {frame} was not written to {self.path}: a coordinate of {largest:g} Angstrom is beyond the "
                f"{limit:g} that the format holds; the forecast broke down, ask for a shorter horizon or another model"
            )

    def _cell(self, box: ArrayLike | None, frame: int) -> NDArray[np.float32] | None:
        cell = None if box is None else np.asarray(box, dtype=np.float32)
        if cell is not None:
            if cell.shape != (6,) or not np.isfinite(cell).all():
                raise UsageError(f"the box of frame {frame} is {np.asarray(box).tolist()}; expected six finite numbers")
            if not cell[:3].any():
                cell = None  # MDAnalysis' way to say that there is no box
            elif not _is_cell(cell):
                raise UsageError(f"the box of frame {frame} is {cell.tolist()}, which no cell can have")
        if not frame:
            self._periodic = cell is not None
        elif self._format.even and (cell is not None) != self._periodic:
            raise UsageError(
                f"frame {frame} has {'a' if cell is not None else 'no'} box, unlike the frames before it; "
                f"a {self._suffix} file has one in every frame or in none"
            )
        return cell

    @property
    def _suffix(self) -> str:
        return self._format.suffix.removeprefix(".").upper()


class FrameWriter(Frames):
    """Write frames to a file that appears under its name only when it is whole.

    Frames go to a temporary file in the same folder, which takes the name of the target in `close`. Leaving the
    ``with`` block by an exception, `abort`, or dropping the writer removes the temporary file and leaves what was at
    the target alone. The size of the file is compared with what was written: MDAnalysis' DCD writer does not notice a
    full disk. Closing a writer that never wrote a frame leaves no file.

    Parameters
    ----------
    path
        Target; its suffix decides the format: ``.dcd``, ``.xtc``, or that of another package (:mod:`.formats`).
    n_atoms
        Number of atoms in each frame.
    dt
        Spacing of the frames in ps.
    start_time
        Time of the first frame in ps.
    force
        Replace a file that exists.

    Raises
    ------
    UsageError
        Another suffix, or numbers that cannot be right.
    OutputError
        The target exists and `force` is not set, or its folder cannot be written to.

    Notes
    -----
    XTC stores the time of each frame as a single precision number, and positions rounded to 0.01 Angstrom.

    DCD stores one spacing for the whole file, and as its start a whole number of integration steps. MDAnalysis reads
    frame i as ``(i + istart / nsavc) * nsavc * delta``. The writer takes for ``istart / nsavc`` the best fraction for
    ``start_time / dt`` with a denominator up to 1000: exact for times given to a thousandth of the spacing, otherwise
    wrong by less than a thousandth of it. ``delta`` is single precision: times are right to 1 part in 10 million.
    mdtraj does not read the times of a DCD file at all, it numbers the frames.
    """

    def __init__(self, path: StrPath, n_atoms: int, *, dt: float, start_time: float = 0.0, force: bool = False) -> None:
        super().__init__(path, n_atoms, dt=dt, start_time=start_time)
        self._force = force
        _require_target(self.path, force)
        self._part = part_of(self.path)
        try:
            os.close(os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            self._file: Format | None = self._format(str(self._part), n_atoms, self.dt, self.start_time)
        except OSError as exc:
            _remove(self._part)
            raise OutputError(f"{self.path} cannot be written ({exc}); choose a folder you may write to") from exc
        self._remove = weakref.finalize(self, _remove, self._part)

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, positions: ArrayLike, box: ArrayLike | None = None, time: float | None = None) -> None:
        """Add one frame.

        Parameters
        ----------
        positions
            ``(N, 3)`` in Angstrom.
        box
            ``(6,)`` in Angstrom and degrees; a DCD file has a box in every frame or in none.
        time
            In ps; ``start_time + n_frames * dt`` where None. In a DCD file it can be nothing else.

        Raises
        ------
        UsageError
            A shape, a box or a time that cannot be right.
        OutputError
            Positions that are not finite or do not fit the format, or a frame that did not reach the file.
        """
        if self._file is None:
            raise UsageError(f"{self.path} is closed already; open a new writer")
        frame = self.n_frames
        xyz, cell, time = self.checked(positions, box, time, frame)
        try:
            self._file.write(xyz, cell, frame, time)
        except OSError as exc:
            raise self._unwritten(str(exc)) from exc
        self.n_frames += 1

    def close(self) -> None:
        """Give the file its name, after a check that every frame reached it."""
        if self._file is None:
            return
        try:
            self._file.close()
            self._file = None
            if self.n_frames:
                with open(self._part, "rb+") as stream:
                    os.fsync(stream.fileno())
                self._verify()
                if not self._force and os.path.lexists(self.path):
                    raise OutputError(
                        f"{self.path} appeared meanwhile; choose another name, or use --force (force=True)"
                    )
                os.replace(self._part, os.path.realpath(self.path))
        except OutputError:
            raise
        except OSError as exc:
            raise self._unwritten(str(exc)) from exc
        finally:
            self._file = None
            self._remove()

    def abort(self) -> None:
        """Remove what was written; nothing changes at the target."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._remove()

    def _verify(self) -> None:
        try:
            found = self._format.count(str(self._part))
        except DataError as exc:
            raise self._unwritten(str(exc)) from exc
        if found != (self.n_atoms, self.n_frames):
            raise self._unwritten(f"{found[1]} whole frames instead of {self.n_frames}")

    def _unwritten(self, why: str) -> OutputError:
        return OutputError(
            f"frame {self.n_frames} of {self.path} could not be written whole ({why}); is the disk full? "
            "Nothing was kept: free some space, or write elsewhere"
        )


def require_targets(
    path: StrPath, *, force: bool = False, topology: bool = True, inputs: Iterable[StrPath] = ()
) -> list[Path]:
    """The files that :func:`write_forecast` would write, once it is sure that it may; same arguments and errors.

    To be asked before a long computation whose result goes there.
    """
    target = Path(path)
    format_of(target)
    targets = [target, target.with_suffix(".pdb")] if topology else [target]
    sources = [source for source in inputs if os.path.exists(source)]
    for file in targets:
        if os.path.exists(file) and any(os.path.samefile(file, source) for source in sources):
            raise UsageError(f"{file} is an input of this forecast and is never overwritten; choose another name")
        _require_target(file, force)
    return targets


def write_forecast(
    path: StrPath,
    atoms: mda.AtomGroup,
    positions: ArrayLike,
    times: ArrayLike,
    *,
    boxes: ArrayLike | None = None,
    dt: float | None = None,
    force: bool = False,
    topology: bool | Topology = True,
    recentre: bool = False,
    inputs: Iterable[StrPath] = (),
    b_factors: ArrayLike | None = None,
    remarks: Sequence[str] = (),
) -> list[Path]:
    """Write frames to a DCD or XTC file, and their topology to a PDB file of the same name beside it.

    Both targets are checked before anything is written, and neither appears unless both could be written whole. The
    PDB file holds the first frame, the elements (guessed from the names where unknown) and CONECT records for the
    bonds that a model sees, the links of a C-alpha chain among them: viewers draw it. Their columns end at atom 99999;
    larger topologies have none.

    Parameters
    ----------
    path
        Target; its suffix decides the format: ``.dcd``, ``.xtc``, or that of another package (:mod:`.formats`).
    atoms
        The N atoms that are written.
    positions
        ``(F, N, 3)`` in Angstrom.
    times
        ``(F,)`` in ps; evenly spaced for DCD.
    boxes
        ``(F, 6)`` or ``(6,)`` in Angstrom and degrees; None for no box.
    dt
        Spacing in ps; taken from `times` where None, which takes two frames.
    force
        Replace files that exist.
    topology
        Write the PDB file. Chains without a letter get one. Of many forecasts of the same atoms: one
        :class:`Topology` for all.
    recentre
        Move the PDB file, not the trajectory, to the origin where its columns cannot hold the coordinates; with a
        warning.
    inputs
        Files that must not be overwritten, whatever `force` says.
    b_factors
        ``(N,)``, for that column of the PDB file; what the topology has where None.
    remarks
        Lines of the PDB file, of 69 letters at most, that say what it holds.

    Returns
    -------
    list of Path
        The files that were written, the trajectory first.

    Raises
    ------
    UsageError
        Shapes or a suffix that cannot be right, or a target that is one of the inputs.
    OutputError
        A target that exists, or could not be written whole.
    """
    targets = require_targets(path, force=force, topology=bool(topology), inputs=inputs)
    target = targets[0]
    kind = format_of(target)
    xyz, clock, cells = checked_frames(len(atoms), positions, times, boxes)
    if dt is None and len(clock) > 1:
        dt = float(clock[-1] - clock[0]) / (len(clock) - 1)
    elif dt is None and kind.even:
        name = kind.suffix.removeprefix(".").upper()
        raise UsageError(
            f"a {name} file needs the spacing of its frames, which one frame does not show; pass dt= in ps"
        )
    elif dt is None:
        dt = 1.0  # not stored

    part = part_of(targets[-1])
    try:
        with FrameWriter(target, len(atoms), dt=dt, start_time=float(clock[0]), force=force) as writer:
            for i, frame in enumerate(xyz):
                writer.write(frame, None if cells is None else cells[i], float(clock[i]))
            if topology:
                made = topology if isinstance(topology, Topology) else Topology(atoms)
                box = None if cells is None else cells[0]
                made.write(part, targets[1], xyz[0], box, recentre=recentre, b_factors=b_factors, remarks=remarks)
        if topology:
            os.replace(part, os.path.realpath(targets[1]))
    finally:
        _remove(part)
    return targets


def write_topology(
    target: Path, atoms: mda.AtomGroup, positions: ArrayLike, box: ArrayLike | None = None, *, recentre: bool = False
) -> None:
    """Write the PDB file of :func:`write_forecast` alone, whole or not at all, over what is there.

    Parameters
    ----------
    target
        The PDB file.
    atoms, recentre
        See :func:`write_forecast`.
    positions, box
        ``(N, 3)`` in Angstrom, and ``(6,)`` in Angstrom and degrees or None.

    Raises
    ------
    OutputError
        It could not be written whole.
    """
    part = part_of(target)
    try:
        Topology(atoms).write(part, target, np.asarray(positions, np.float32), box, recentre=recentre)
        os.replace(part, os.path.realpath(target))
    except OSError as exc:
        if isinstance(exc, OutputError):
            raise
        raise OutputError(f"the topology {target} could not be written ({exc}); write elsewhere") from exc
    finally:
        _remove(part)


def _is_cell(box: NDArray[np.float32]) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(triclinic_vectors(box).any())


#: What the columns of a PDB file hold, in Angstrom.
_PDB_RANGE = (-999.9, 9999.9)


class Topology:
    """The PDB file of a group of atoms, which may be written of many frames: all but the frame is made once.

    Parameters
    ----------
    atoms
        The N atoms; bonds that a model sees become CONECT records.
    """

    def __init__(self, atoms: mda.AtomGroup) -> None:
        # Beyond the last number that fits, numbers start anew: a record would bond two pairs of atoms.
        bonds = bonds_among(atoms) if len(atoms) < 100_000 else None
        self._universe = in_memory_universe(atoms, np.zeros((1, len(atoms), 3)), np.zeros(1))
        self._universe.add_TopologyAttr("elements", atom_elements(self._universe.atoms).astype(object))
        _tell_apart(self._universe)
        _letter_chains(self._universe)
        if bonds is not None:
            self._universe.add_TopologyAttr("bonds", bonds)
        self._b_factors = atoms.tempfactors if hasattr(atoms, "tempfactors") else np.zeros(len(atoms))
        #: None: not made yet, which MDAnalysis does.
        self._conect: list[str] | None = [] if bonds is None else None

    def write(
        self,
        part: Path,
        target: Path,
        positions: NDArray[np.float32],
        box: ArrayLike | None,
        *,
        recentre: bool = False,
        b_factors: ArrayLike | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        """Write the frame ``(N, 3)`` in its box ``(6,)`` to `part`; the errors speak of `target`."""
        universe = self._universe
        universe.dimensions = box
        universe.atoms.positions = positions
        moved = recentre and _move_into_columns(universe)
        universe.add_TopologyAttr("tempfactors", np.asarray(self._b_factors if b_factors is None else b_factors, float))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # attributes that the topology does not have are filled with defaults
                universe.atoms.write(str(part), bonds="all" if self._conect is None else None)
            lines = part.read_text().splitlines(keepends=True)
            if self._conect is None:
                self._conect = [line for line in lines if line.startswith("CONECT")]
            elif self._conect:
                lines[-1:] = [*self._conect, lines[-1]]  # the last is END
            if box is None:
                # MDAnalysis then writes a cell of 1 Angstrom, which readers warn of and viewers draw.
                lines = [line for line in lines if not line.startswith(("CRYST1", "REMARK     285"))]
            if remarks:
                first = next(k for k, line in enumerate(lines) if not line.startswith(("HEADER", "TITLE")))
                lines[first:first] = [f"REMARK   6 {line}\n" for line in remarks]
            part.write_text("".join(lines))
            if moved:
                warnings.warn(
                    f"the frames are so far from the origin that a PDB file cannot hold them: {target} is moved to the "
                    "origin, the trajectory is not",
                    UserWarning,
                    stacklevel=3,
                )
        except OSError as exc:
            raise OutputError(
                f"the topology {target} could not be written ({exc}); free some space, or write elsewhere (in Python, "
                "topology=False writes the trajectory alone)"
            ) from exc
        except ValueError as exc:
            raise OutputError(
                f"the topology {target} could not be written ({exc}); centre the run first (gmx trjconv -center, or "
                "MDAnalysis.transformations), or, in Python, move the PDB file alone (recentre=True) or write "
                "none (topology=False)"
            ) from exc
        with open(part, "rb") as stream:
            stream.seek(max(0, os.path.getsize(part) - 8))
            if b"END" not in stream.read():
                raise OutputError(f"the topology {target} could not be written whole; is the disk full?")


def _tell_apart(universe: mda.Universe) -> None:
    """Number the residues, and the atoms in each, that the topology does not: of equal ones OpenMM reads the first."""
    atoms = universe.atoms
    if not hasattr(atoms, "resids"):
        universe.add_TopologyAttr("resids", np.arange(1, len(universe.residues) + 1))
    if not hasattr(atoms, "names"):
        numbers = np.concatenate([np.arange(1, len(residue.atoms) + 1) for residue in universe.residues])
        names = np.empty(len(atoms), object)
        names[np.argsort(atoms.resindices, kind="stable")] = [f"X{k}" if k < 1000 else str(k) for k in numbers]
        universe.add_TopologyAttr("names", names)


def _letter_chains(universe: mda.Universe) -> None:
    """Give every chain a letter of its own where the topology does not name all of them by one, or residues twice."""
    atoms = universe.atoms
    known = np.char.strip(atoms.chainIDs.astype(str)) if hasattr(atoms, "chainIDs") else np.full(len(atoms), "")
    if (np.char.str_len(known) == 1).all() and not _residues_twice(atoms):
        return
    segids = np.char.strip(atoms.segids.astype(str)) if hasattr(atoms, "segids") else known
    used = {*known, *segids}
    free = iter(dict.fromkeys([c for c in _CHAIN_LETTERS if c not in used] + list(_CHAIN_LETTERS)))
    letters: dict[int, str] = {}
    chains = chain_numbers(atoms)
    for k in np.unique(chains, return_index=True)[1]:
        name = known[k] or segids[k]
        taken = len(name) != 1 or name in letters.values()
        letters[int(chains[k])] = next(free, _CHAIN_LETTERS[int(chains[k]) % len(_CHAIN_LETTERS)]) if taken else name
    universe.add_TopologyAttr("chainIDs", [letters[int(chain)] for chain in chains])


def _residues_twice(atoms: mda.AtomGroup) -> bool:
    """Whether two residues have one chain, number and insertion code, as of two copies of a molecule."""
    first = np.unique(atoms.resindices, return_index=True)[1]
    names = [getattr(atoms, name)[first].tolist() for name in ("chainIDs", "resids", "icodes") if hasattr(atoms, name)]
    return len(set(zip(*names, strict=True))) < len(first)


_CHAIN_LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits


def _move_into_columns(universe: mda.Universe) -> bool:
    """Bring coordinates that a PDB file cannot hold to the origin; whether there were any."""
    positions = universe.atoms.positions
    if _PDB_RANGE[0] < positions.min() and positions.max() < _PDB_RANGE[1]:
        return False
    universe.atoms.positions = positions - np.round(positions.mean(axis=0))
    return True


def _require_target(path: Path, force: bool) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: the folder {folder} does not exist; create it first")
    if os.path.lexists(path):
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} exists and is not a regular file; choose another name")
        if not force:
            raise OutputError(f"{path} exists; choose another name, or replace it with --force (force=True)")
    if not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission to write to its folder; choose another one")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
