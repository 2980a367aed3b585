"""Files are read whole or refused with the reason, and written whole or not at all."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
from conftest import make_universe
from MDAnalysis.coordinates.XTC import XTCWriter

from benchmarks.reliability import scene
from egno_md.errors import DataError, OutputError, UsageError
from egno_md.trajectory.clock import frame_spacing
from egno_md.trajectory.mdtraj import from_mdtraj, to_mdtraj
from egno_md.trajectory.universe import in_memory_universe, open_runs, open_universe, stored_universe
from egno_md.trajectory.writer import FrameWriter, write_forecast

files = pytest.importorskip("MDAnalysis.tests.datafiles", reason="needs the MDAnalysisTests package")

pytestmark = [
    pytest.mark.filterwarnings("ignore:DCDReader currently makes:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Element information is missing"),
    pytest.mark.filterwarnings("ignore::UserWarning:MDAnalysis.coordinates.PDB"),
]

ORTHO = np.array([50.0, 60.0, 70.0, 90.0, 90.0, 90.0])
TRICLINIC = np.array([50.0, 60.0, 70.0, 80.0, 85.0, 95.0])
ADK_FRAME = 3 * 4 * (3341 + 2)  # bytes of a frame of adk_dims.dcd, which has no box


@pytest.fixture(scope="module")
def adk() -> mda.Universe:
    return open_universe(files.PSF, [files.DCD])


@pytest.fixture(scope="module")
def backbone(adk: mda.Universe) -> mda.AtomGroup:
    return adk.select_atoms("backbone and resid 1:20")


@pytest.fixture(scope="module")
def frames(adk: mda.Universe, backbone: mda.AtomGroup) -> np.ndarray:
    return np.array([backbone.positions.copy() for _ in adk.trajectory[:6]])


@pytest.fixture(scope="module")
def water_box(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """60 atoms in 6 frames, 100 ps apart, cut from a real GROMACS run, as GRO, XTC, TRR and DCD."""
    folder = tmp_path_factory.mktemp("water_box")
    shutil.copy(files.XTC, folder / "whole.xtc")  # MDAnalysis writes its index beside the file
    group = mda.Universe(files.GRO, folder / "whole.xtc").atoms[:60]
    group.write(folder / "some.gro")
    for suffix in ("xtc", "trr", "dcd"):
        options = {"dt": 100.0} if suffix == "dcd" else {}
        with mda.Writer(str(folder / f"some.{suffix}"), 60, **options) as writer:
            for _ in group.universe.trajectory[:6]:
                writer.write(group)
    return {suffix: folder / f"some.{suffix}" for suffix in ("gro", "xtc", "trr", "dcd")}


def all_positions(universe: mda.Universe) -> np.ndarray:
    return np.array([universe.atoms.positions.copy() for _ in universe.trajectory])


def all_times(universe: mda.Universe) -> np.ndarray:
    return np.array([ts.time for ts in universe.trajectory])


# --------------------------------------------------------------------------------------------------------------- input


def test_a_real_run_opens(adk: mda.Universe) -> None:
    assert len(adk.trajectory) == 98
    assert len(adk.atoms) == 3341
    assert frame_spacing(adk) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd"])
def test_whole_files_are_read_as_mdanalysis_does(water_box: dict[str, Path], suffix: str, recwarn) -> None:
    ours = open_universe(water_box["gro"], [water_box[suffix]])
    theirs = mda.Universe(water_box["gro"], water_box[suffix])
    np.testing.assert_array_equal(all_positions(ours), all_positions(theirs))
    np.testing.assert_array_equal(all_times(ours), all_times(theirs))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_one_path_instead_of_a_list(water_box: dict[str, Path]) -> None:
    assert len(open_universe(water_box["gro"], water_box["xtc"]).trajectory) == 6


def test_topology_that_holds_the_frames(tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    target = tmp_path / "models.pdb"
    universe = in_memory_universe(backbone, frames, np.arange(6.0))
    universe.atoms.write(target, frames="all")
    assert len(open_universe(target).trajectory) == 6


@pytest.mark.parametrize("opened", [open_universe, open_runs])
def test_a_file_is_given_once_under_whatever_name(tmp_path: Path, opened) -> None:
    (tmp_path / "link.dcd").symlink_to(files.DCD)
    with pytest.raises(UsageError, match=r"adk_dims\.dcd and .*link\.dcd are one file; give each file once"):
        opened(files.PSF, [files.DCD, tmp_path / "link.dcd"])
    with pytest.raises(UsageError, match="are one file"):
        opened(files.PSF, [files.DCD] * 2)


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    empty = tmp_path / "empty.dcd"
    empty.touch()
    with pytest.raises(DataError, match=r"nowhere\.dcd does not exist; check the path"):
        open_universe(files.PSF, [tmp_path / "nowhere.dcd"])
    with pytest.raises(DataError, match=r"topology file .*nowhere\.psf does not exist"):
        open_universe(tmp_path / "nowhere.psf", [files.DCD])
    with pytest.raises(DataError, match="is a folder"):
        open_universe(files.PSF, [tmp_path])
    with pytest.raises(DataError, match=r"empty\.dcd is empty \(0 bytes\)"):
        open_universe(files.PSF, [empty])


def test_a_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked.dcd"
    shutil.copy(files.DCD, locked)
    plain_open = Path.open

    def refuse(path: Path, *args: object, **kwargs: object) -> object:
        if path == locked:  # what a mode of 0 does to everybody but root
            raise PermissionError(13, "Permission denied")
        return plain_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read .* check its permissions"):
        open_universe(files.PSF, [locked])


def test_arguments_in_the_wrong_order() -> None:
    with pytest.raises(DataError, match="give the topology first"):
        open_universe(files.DCD, [files.PSF])


def test_topology_alone_needs_coordinates() -> None:
    with pytest.raises(DataError, match="holds no coordinates; add a trajectory"):
        open_universe(files.PSF)


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "trr"])
def test_mismatch_names_both_files_and_counts(water_box: dict[str, Path], suffix: str) -> None:
    with pytest.raises(DataError, match=rf"adk\.psf has 3341 atoms, .*some\.{suffix} has 60; give the topology"):
        open_universe(files.PSF, [water_box[suffix]])


def test_mismatch_in_a_format_without_preflight(water_box: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"adk\.psf with 3341 atoms does not match .*60"):
        open_universe(files.PSF, [water_box["gro"]])


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "trr"])
def test_foreign_content_under_a_trajectory_name(tmp_path: Path, suffix: str) -> None:
    fake = tmp_path / f"fake.{suffix}"
    fake.write_bytes(b"ATOM      1  CA  MET X   1\n" * 100)
    with pytest.raises(DataError, match="is damaged: frame 0 at byte 0"):
        open_universe(files.PSF, [fake])


@pytest.mark.parametrize(("n_frames", "extra"), [(40, 17), (40, ADK_FRAME - 1), (1, 5000)])
def test_truncated_dcd_keeps_the_whole_frames(tmp_path: Path, adk: mda.Universe, n_frames: int, extra: int) -> None:
    data = Path(files.DCD).read_bytes()
    size = len(data) - (98 - n_frames) * ADK_FRAME + extra
    cut = tmp_path / "cut.dcd"
    cut.write_bytes(data[:size])
    with pytest.warns(UserWarning, match=rf"cut\.dcd ends inside a frame: its {size} bytes hold {n_frames} whole"):
        universe = open_universe(files.PSF, [cut])
    assert len(universe.trajectory) == n_frames
    adk.trajectory[n_frames - 1]
    universe.trajectory[-1]
    np.testing.assert_array_equal(universe.atoms.positions, adk.atoms.positions)


@pytest.mark.parametrize("suffix", ["xtc", "trr"])
@pytest.mark.parametrize("whole", [1, 4])
@pytest.mark.parametrize("extra", [3, 60, 93, 200])  # inside the header, its second part, just after it, the body
def test_truncated_xdr_keeps_the_whole_frames(
    tmp_path: Path, water_box: dict[str, Path], suffix: str, whole: int, extra: int
) -> None:
    original = mda.Universe(water_box["gro"], water_box[suffix])
    begin = int(original.trajectory._xdr.offsets[whole])
    data = water_box[suffix].read_bytes()[: begin + extra]
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"cut\.{suffix} ends inside a frame: .* {whole} whole frames \({begin} b"):
        universe = open_universe(water_box["gro"], [cut])
    np.testing.assert_array_equal(all_positions(universe), all_positions(original)[:whole])
    assert cut.read_bytes() == data
    assert os.listdir(tmp_path) == [cut.name]


@pytest.mark.parametrize(("suffix", "size"), [("dcd", 500), ("xtc", 250), ("xtc", 20), ("trr", 250), ("trr", 20)])
def test_not_even_one_whole_frame(tmp_path: Path, water_box: dict[str, Path], suffix: str, size: int) -> None:
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(water_box[suffix].read_bytes()[:size])
    with pytest.raises(DataError, match="holds no whole frame"):
        open_universe(water_box["gro"], [cut])


def test_dcd_with_a_damaged_frame(tmp_path: Path, water_box: dict[str, Path]) -> None:
    data = bytearray(water_box["dcd"].read_bytes())
    frame = 56 + 3 * 4 * 62
    data[len(data) - 2 * frame] ^= 0x10
    damaged = tmp_path / "damaged.dcd"
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=rf"frame 4 at byte {len(data) - 2 * frame} .* copy the file again"):
        open_universe(water_box["gro"], [damaged])


def test_corrupt_xtc_header_names_the_place_and_a_cure_that_works(tmp_path: Path, water_box: dict[str, Path]) -> None:
    offset = int(mda.Universe(water_box["gro"], water_box["xtc"]).trajectory._xdr.offsets[3])
    data = bytearray(water_box["xtc"].read_bytes())
    data[offset + 5] ^= 0x40  # the number of atoms
    damaged = tmp_path / "damaged.xtc"
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=rf"frame 3 at byte {offset} .*head -c {offset} .*damaged\.xtc"):
        open_universe(water_box["gro"], [damaged])
    damaged.write_bytes(data[:offset])
    assert len(open_universe(water_box["gro"], [damaged]).trajectory) == 3


@pytest.mark.parametrize("suffix", ["xtc", "trr"])
def test_no_flipped_bit_ends_the_interpreter(tmp_path: Path, water_box: dict[str, Path], suffix: str) -> None:
    """Bits of every byte of a frame header, and of some of its coordinates; in an interpreter of its own."""
    program = """
        import sys, warnings
        from pathlib import Path
        from egno_md.errors import DataError
        from egno_md.trajectory import open_universe
        import MDAnalysis as mda
        warnings.simplefilter("ignore")
        topology, source, target = map(Path, sys.argv[1:])
        begin, end = map(int, mda.Universe(topology, source).trajectory._xdr.offsets[2:4])
        data = source.read_bytes()
        refused = 0
        places = [(i, bit) for i in range(begin, begin + 92) for bit in (0, 2, 5, 7)]
        places += [(i, i % 8) for i in range(begin + 92, end, 7)]
        for i, bit in places:
            broken = bytearray(data)
            broken[i] ^= 1 << bit
            target.write_bytes(broken)
            try:
                universe = open_universe(topology, target)
                for _ in universe.trajectory:
                    pass
            except DataError:
                refused += 1
        print(len(places), refused)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, (
            _topology_without_bonds(tmp_path), water_box[suffix], tmp_path / f"flipped.{suffix}"))],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    tried, refused = map(int, result.stdout.split())
    assert 100 < refused < tried  # a flip of a low bit of a coordinate is nothing anybody could see


def _topology_without_bonds(folder: Path) -> Path:
    """60 atoms that are parsed quickly."""
    target = folder / "atoms.xyz"
    target.write_text("60\n\n" + "C 0 0 0\n" * 60)
    return target


def test_a_damaged_index_beside_the_file_is_ignored(tmp_path: Path, water_box: dict[str, Path]) -> None:
    shutil.copy(water_box["xtc"], tmp_path / "run.xtc")
    (tmp_path / ".run.xtc_offsets.npz").write_bytes(b"PK\x03\x04 half an archive")
    assert len(open_universe(water_box["gro"], [tmp_path / "run.xtc"]).trajectory) == 6


def test_small_systems_are_stored_unpacked_in_xtc(tmp_path: Path) -> None:
    universe = mda.Universe.empty(9, trajectory=True)
    positions = np.random.default_rng(0).normal(size=(3, 9, 3)).astype(np.float32)
    with XTCWriter(str(tmp_path / "nine.xtc"), 9) as writer:
        for frame in positions:
            universe.atoms.positions = frame
            writer.write(universe.atoms)
    (tmp_path / "nine.xyz").write_text("9\n\n" + "C 0 0 0\n" * 9)
    whole = open_universe(tmp_path / "nine.xyz", [tmp_path / "nine.xtc"])
    np.testing.assert_allclose(all_positions(whole), positions, atol=1e-5)
    (tmp_path / "nine.xtc").write_bytes((tmp_path / "nine.xtc").read_bytes()[:-1])
    with pytest.warns(UserWarning, match="2 whole frames"):
        assert len(open_universe(tmp_path / "nine.xyz", [tmp_path / "nine.xtc"]).trajectory) == 2


@pytest.mark.parametrize("parts", [("dcd",), ("xtc",), ("trr",), ("dcd", "dcd"), ("xtc", "trr", "dcd", "xtc")])
def test_dt_overrides_the_headers(tmp_path: Path, water_box: dict[str, Path], parts: tuple[str, ...]) -> None:
    copies = [shutil.copy(water_box[part], tmp_path / f"{k}.{part}") for k, part in enumerate(parts)]
    universe = open_universe(water_box["gro"], copies, dt=2.5)
    assert len(universe.trajectory) == 6 * len(parts)
    assert frame_spacing(universe) == pytest.approx(2.5)
    np.testing.assert_allclose(all_times(universe), 2.5 * np.arange(6 * len(parts)), atol=1e-9)
    universe.trajectory[-1]
    assert universe.trajectory.ts.time == pytest.approx(2.5 * (6 * len(parts) - 1))


@pytest.mark.parametrize("dt", [0.0, -1.0, float("nan")])
def test_dt_must_be_positive(dt: float) -> None:
    with pytest.raises(UsageError, match="positive number of ps"):
        open_universe(files.PSF, [files.DCD], dt=dt)


# -------------------------------------------------------------------------------------------------------- frame spacing


def test_spacing_of_several_files(water_box: dict[str, Path]) -> None:
    universe = open_universe(water_box["gro"], [water_box["xtc"], water_box["trr"]])
    universe.trajectory[4]
    with pytest.warns(UserWarning, match=r"between frames 5 and 6 .* goes on by -500 ps"):
        assert frame_spacing(universe) == pytest.approx(100.0, rel=1e-4)
    assert universe.trajectory.frame == 4


def test_uneven_times_are_refused(backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    uneven = in_memory_universe(backbone, frames, [0.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    uneven.trajectory[2]
    with pytest.raises(DataError, match=r"not evenly spaced in time .*5: 6 ps.*dt="):
        frame_spacing(uneven)
    assert uneven.trajectory.frame == 2


def test_times_that_stand_still_are_refused(backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    with pytest.raises(DataError, match="not evenly spaced"):
        frame_spacing(in_memory_universe(backbone, frames, np.zeros(6)))


def test_single_precision_times_far_from_zero(backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    times = np.float32(1e6 + 0.7 * np.arange(6)).astype(np.float64)  # as read from XTC: steps of 1/16 ps
    assert frame_spacing(in_memory_universe(backbone, frames, times)) == pytest.approx(0.7, abs=0.02)


def test_one_frame_has_no_spacing(backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    assert frame_spacing(in_memory_universe(backbone, frames[:1], [7.0])) == 0.0


def test_formats_without_times_need_dt(tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    in_memory_universe(backbone, frames, np.arange(6.0)).atoms.write(tmp_path / "models.pdb", frames="all")
    with pytest.raises(DataError, match=r"6 frames but no times; give the true spacing \(dt="):
        frame_spacing(open_universe(tmp_path / "models.pdb"))
    assert frame_spacing(open_universe(tmp_path / "models.pdb", dt=3.0)) == pytest.approx(3.0)


# -------------------------------------------------------------------------------------------------------------- memory


def test_in_memory_universe_keeps_everything(backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    times = np.array([3.0, 4.0, 6.0, 9.0, 9.5, 20.0])
    boxes = TRICLINIC + np.arange(6)[:, None] * [1, 1, 1, 0, 0, 0]
    universe = in_memory_universe(backbone, frames, times, boxes)
    np.testing.assert_array_equal(universe.atoms.names, backbone.names)
    np.testing.assert_array_equal(universe.atoms.resids, backbone.resids)
    lookup = {index: i for i, index in enumerate(backbone.indices)}
    among = {(lookup[i], lookup[j]) for i, j in backbone.bonds.indices if i in lookup and j in lookup}
    assert {tuple(pair) for pair in universe.bonds.indices} == among
    for other in (universe, universe.copy(), pickle.loads(pickle.dumps(universe))):
        np.testing.assert_array_equal(all_times(other), times)
        np.testing.assert_array_equal(all_positions(other), frames)
        np.testing.assert_allclose([ts.dimensions for ts in other.trajectory], boxes, rtol=1e-6)
        other.trajectory[-2]
        assert other.trajectory.ts.time == 9.5


def test_in_memory_universe_without_box(backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    assert in_memory_universe(backbone, frames, np.arange(6.0)).dimensions is None


@pytest.mark.parametrize(
    ("shape", "n_times", "box_shape"), [((6, 3, 3), 6, None), ((0, 80, 3), 0, None), ((6, 80, 3), 5, None),
                                        ((6, 80, 3), 6, (5, 6))]
)  # fmt: skip
def test_in_memory_universe_checks_shapes(backbone: mda.AtomGroup, shape, n_times, box_shape) -> None:
    assert len(backbone) == 80
    boxes = None if box_shape is None else np.ones(box_shape)
    with pytest.raises(UsageError, match="expected"):
        in_memory_universe(backbone, np.zeros(shape), np.arange(float(n_times)), boxes)


# -------------------------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
@pytest.mark.parametrize("box", [None, ORTHO, TRICLINIC], ids=["no box", "orthorhombic", "triclinic"])
def test_forecast_is_read_back_by_mdanalysis_and_mdtraj(
    tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray, suffix: str, box: np.ndarray | None
) -> None:
    times = 97.3 + 2.0 * np.arange(6)  # a start that is no multiple of the spacing
    boxes = None if box is None else np.repeat(box[None], 6, axis=0)
    written = write_forecast(tmp_path / f"forecast.{suffix}", backbone, frames, times, boxes=boxes)
    assert written == [tmp_path / f"forecast.{suffix}", tmp_path / "forecast.pdb"]
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in written)
    precision = 1e-5 if suffix == "dcd" else 0.0051  # Angstrom

    universe = mda.Universe(written[1], written[0])
    assert universe.trajectory.dt == pytest.approx(2.0, rel=1e-5)
    np.testing.assert_allclose(all_times(universe), times, rtol=1e-6)
    np.testing.assert_allclose(all_positions(universe), frames, atol=precision)
    np.testing.assert_array_equal(universe.atoms.names, backbone.names)
    np.testing.assert_array_equal(universe.atoms.resnames, backbone.resnames)
    np.testing.assert_array_equal(universe.atoms.resids, backbone.resids)

    other = mdtraj.load(written[0], top=written[1])
    np.testing.assert_allclose(other.xyz * 10.0, frames, atol=precision)
    assert [atom.name for atom in other.topology.atoms] == list(backbone.names)
    assert [atom.residue.resSeq for atom in other.topology.atoms] == list(backbone.resids)
    if suffix == "xtc":  # mdtraj numbers the frames of a DCD file whatever its header says
        np.testing.assert_allclose(other.time, times, rtol=1e-6)

    if box is None:
        assert universe.dimensions is None
        assert other.unitcell_lengths is None
    else:
        for ts in universe.trajectory:
            np.testing.assert_allclose(ts.dimensions, box, rtol=1e-5)
        np.testing.assert_allclose(other.unitcell_lengths * 10.0, boxes[:, :3], rtol=1e-5)
        np.testing.assert_allclose(other.unitcell_angles, boxes[:, 3:], rtol=1e-5)


def test_topology_holds_elements_and_bonds(tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    write_forecast(tmp_path / "forecast.xtc", backbone, frames, np.arange(6.0))
    topology = mda.Universe(tmp_path / "forecast.pdb")
    assert list(topology.atoms.elements) == [name[0] for name in backbone.names]
    expected = in_memory_universe(backbone, frames[:1], [0.0]).bonds.indices
    assert {tuple(sorted(pair)) for pair in topology.bonds.indices} == {tuple(sorted(pair)) for pair in expected}
    alphas = backbone.select_atoms("name CA")
    write_forecast(tmp_path / "alphas.xtc", alphas, frames[:, : len(alphas)], np.arange(6.0))
    assert set(mda.Universe(tmp_path / "alphas.pdb").atoms.elements) == {"C"}  # not calcium


@pytest.mark.parametrize(
    ("start", "dt"), [(0.0, 1.0), (100.0, 2.0), (97.3, 2.0), (0.25, 0.1), (-5.0, 2.0), (123456.789, 1 / 3), (1e6, 0.5)]
)
def test_dcd_start_times(tmp_path: Path, start: float, dt: float) -> None:
    with FrameWriter(tmp_path / "run.dcd", 4, dt=dt, start_time=start) as writer:
        for _ in range(3):
            writer.write(np.ones((4, 3)))
    universe = mda.Universe.empty(4).load_new(str(tmp_path / "run.dcd"))
    expected = start + dt * np.arange(3)
    np.testing.assert_allclose(all_times(universe), expected, atol=1e-3 * dt, rtol=1e-7)


def test_xtc_keeps_the_time_of_each_frame(tmp_path: Path) -> None:
    times = [0.0, 1.0, 5.0, 5.5]
    with FrameWriter(tmp_path / "run.xtc", 4, dt=1.0) as writer:
        for time in times:
            writer.write(np.ones((4, 3)), time=time)
    np.testing.assert_array_equal(mdtraj.formats.XTCTrajectoryFile(str(tmp_path / "run.xtc")).read()[1], times)


def test_dcd_cannot_hold_uneven_times_or_some_boxes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="evenly spaced frames only, here at 1 ps; write XTC"):
        with FrameWriter(tmp_path / "run.dcd", 4, dt=1.0) as writer:
            writer.write(np.ones((4, 3)), time=0.0)
            writer.write(np.ones((4, 3)), time=1.5)
    with pytest.raises(UsageError, match="frame 1 has no box, unlike"):
        with FrameWriter(tmp_path / "run.dcd", 4, dt=1.0) as writer:
            writer.write(np.ones((4, 3)), box=ORTHO)
            writer.write(np.ones((4, 3)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (np.full((20, 3), np.nan), OutputError, "frame 2 was not written .* atom 0 is .nan"),
        (np.full((20, 3), -np.inf), OutputError, "frame 2 was not written"),
        (np.full((20, 3), 1e39), OutputError, "beyond the"),
        (np.ones((19, 3)), UsageError, r"shape \(19, 3\); expected \(20, 3\)"),
    ],
    ids=["nan", "inf", "overflow", "shape"],
)
def test_bad_frames_leave_what_was_there(tmp_path: Path, suffix: str, bad: np.ndarray, error, words: str) -> None:
    target = tmp_path / f"run.{suffix}"
    target.write_bytes(b"older")
    with pytest.raises(error, match=words):
        with FrameWriter(target, 20, dt=1.0, force=True) as writer:
            writer.write(np.ones((20, 3)))
            writer.write(np.ones((20, 3)))
            writer.write(bad)
    assert target.read_bytes() == b"older"
    assert os.listdir(tmp_path) == [target.name]


def test_xtc_has_the_smaller_range(tmp_path: Path) -> None:
    far = np.ones((20, 3))
    far[3, 1] = 3e7
    with FrameWriter(tmp_path / "far.dcd", 20, dt=1.0) as writer:
        writer.write(far)
    with pytest.raises(OutputError, match=r"3e\+07 Angstrom is beyond"):
        with FrameWriter(tmp_path / "far.xtc", 20, dt=1.0) as writer:
            writer.write(far)
    far[3, 1] = 1.07e7  # the extent of a frame is packed into 32 bits as well
    far[4, 1] = -1.07e7
    with FrameWriter(tmp_path / "near.xtc", 20, dt=1.0) as writer:
        writer.write(far)
    read = mdtraj.formats.XTCTrajectoryFile(str(tmp_path / "near.xtc")).read()[0][0]
    np.testing.assert_allclose(read * 10.0, far, rtol=1e-6)


@pytest.mark.parametrize("box", [[50.0, 60.0], [50.0, 60.0, np.nan, 90, 90, 90], [50.0, 60.0, 70.0, 10.0, 170.0, 90.0]])
def test_impossible_boxes(tmp_path: Path, box: list[float]) -> None:
    with pytest.raises(UsageError, match="the box of frame 0 is"):
        with FrameWriter(tmp_path / "run.xtc", 4, dt=1.0) as writer:
            writer.write(np.ones((4, 3)), box=box)


def test_what_a_killed_process_has_left_unfinished_is_removed_by_the_next_one(tmp_path):
    """And nothing else: neither what a living process writes, nor a file of the user's."""
    code = """
        import os, signal, sys
        from egno_md.trajectory.writer import FrameWriter

        writer = FrameWriter(sys.argv[1], 10, dt=1.0)
        print(writer._part, flush=True)
        sys.stdin.read() if len(sys.argv) > 2 else os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out.dcd")]
    living = subprocess.Popen([*command, "stay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        part = Path(living.stdout.readline().strip())
        killed = subprocess.run(command, capture_output=True, text=True)
        users = tmp_path / ".out.part.dcd"
        users.write_text("mine")
        left = Path(killed.stdout.strip())
        assert killed.returncode == -signal.SIGKILL and left.parent == tmp_path and left.exists()
        with FrameWriter(tmp_path / "other.xtc", 10, dt=1.0):
            assert not left.exists() and part.exists() and users.exists()
    finally:
        living.communicate("")
    assert not part.exists()


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        with FrameWriter(tmp_path / "run.dcd", 4, dt=1.0) as writer:
            writer.write(np.ones((4, 3)))
            assert len(os.listdir(tmp_path)) == 1  # unfinished, under another name
            assert not (tmp_path / "run.dcd").exists()
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    writer = FrameWriter(tmp_path / "run.xtc", 4, dt=1.0)
    writer.write(np.ones((4, 3)))
    del writer
    gc.collect()
    assert os.listdir(tmp_path) == []


def test_no_frames_no_file(tmp_path: Path) -> None:
    for suffix in ("dcd", "xtc"):
        with FrameWriter(tmp_path / f"run.{suffix}", 4, dt=1.0):
            pass
    assert os.listdir(tmp_path) == []


def test_close_ends_the_writer(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "run.dcd", 4, dt=1.0)
    writer.write(np.ones((4, 3)))
    writer.close()
    writer.close()
    assert writer.n_frames == 1
    with pytest.raises(UsageError, match="closed already"):
        writer.write(np.ones((4, 3)))
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "run.dcd").stat().st_mode == plain.stat().st_mode


def test_existing_outputs_need_force(tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    target = tmp_path / "forecast.dcd"
    target.write_bytes(b"older")
    with pytest.raises(OutputError, match=r"forecast\.dcd exists; .*--force \(force=True\)"):
        write_forecast(target, backbone, frames, np.arange(6.0))
    target.unlink()
    target.with_suffix(".pdb").write_text("older")
    with pytest.raises(OutputError, match=r"forecast\.pdb exists"):
        write_forecast(target, backbone, frames, np.arange(6.0))
    assert os.listdir(tmp_path) == ["forecast.pdb"]
    assert write_forecast(target, backbone, frames, np.arange(6.0), topology=False) == [target]
    assert target.with_suffix(".pdb").read_text() == "older"
    write_forecast(target, backbone, frames[:2], np.arange(2.0), force=True)
    assert len(mda.Universe(target.with_suffix(".pdb"), target).trajectory) == 2


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="appeared meanwhile"):
        with FrameWriter(tmp_path / "run.dcd", 4, dt=1.0) as writer:
            writer.write(np.ones((4, 3)))
            (tmp_path / "run.dcd").write_bytes(b"another")
    assert (tmp_path / "run.dcd").read_bytes() == b"another"
    assert os.listdir(tmp_path) == ["run.dcd"]


def test_inputs_are_never_overwritten(tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    source = tmp_path / "input.dcd"
    source.write_bytes(b"input")
    alias = tmp_path / "alias.dcd"
    alias.symlink_to(source)
    for target in (source, alias):
        with pytest.raises(UsageError, match="is an input of this forecast"):
            write_forecast(target, backbone, frames, np.arange(6.0), force=True, inputs=[files.PSF, source])
    topology = tmp_path / "run.pdb"
    topology.write_bytes(b"input")
    with pytest.raises(UsageError, match=r"run\.pdb is an input"):
        write_forecast(tmp_path / "run.xtc", backbone, frames, np.arange(6.0), force=True, inputs=[topology])
    assert source.read_bytes() == topology.read_bytes() == b"input"
    assert not (tmp_path / "run.xtc").exists()


def test_a_topology_that_cannot_be_written_keeps_the_trajectory_back(
    tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray
) -> None:
    with pytest.raises(OutputError, match=r"topology .*far\.pdb could not be written .*topology=False"):
        write_forecast(tmp_path / "far.xtc", backbone, frames + 20000.0, np.arange(6.0))  # beyond the columns of PDB
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["run.trr", "run.nc", "run", "run.pdb"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"written as \.dcd or \.xtc"):
        FrameWriter(tmp_path / name, 4, dt=1.0)


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"folder .*nowhere does not exist; create it"):
        FrameWriter(tmp_path / "nowhere" / "run.dcd", 4, dt=1.0)
    (tmp_path / "folder.dcd").mkdir()
    with pytest.raises(OutputError, match="not a regular file"):
        FrameWriter(tmp_path / "folder.dcd", 4, dt=1.0, force=True)


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != os.fspath(tmp_path))  # root may do all
    with pytest.raises(OutputError, match="no permission"):
        FrameWriter(tmp_path / "run.dcd", 4, dt=1.0)


def test_one_frame_needs_dt_in_dcd_only(tmp_path: Path, backbone: mda.AtomGroup, frames: np.ndarray) -> None:
    write_forecast(tmp_path / "one.xtc", backbone, frames[:1], [5.0])
    with pytest.raises(UsageError, match="pass dt="):
        write_forecast(tmp_path / "one.dcd", backbone, frames[:1], [5.0], force=True)
    write_forecast(tmp_path / "one.dcd", backbone, frames[:1], [5.0], dt=2.0, force=True)
    universe = mda.Universe(tmp_path / "one.pdb", tmp_path / "one.dcd")
    assert universe.trajectory.ts.time == pytest.approx(5.0)
    assert universe.trajectory.dt == pytest.approx(2.0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_is_noticed(tmp_path: Path, suffix: str, limit: int) -> None:
    """No file may grow past the limit: writes fall short as on a full disk."""
    program = f"""
        import resource, sys
        import numpy as np
        from egno_md.errors import OutputError
        from egno_md.trajectory import FrameWriter
        positions = np.random.default_rng(0).normal(scale=20.0, size=(200, 3))
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            with FrameWriter(sys.argv[1], 200, dt=1.0, force=True) as writer:
                for _ in range(100):
                    writer.write(positions)
        except OutputError as error:
            print(error)
        else:
            sys.exit("nothing noticed")
    """
    target = tmp_path / f"run.{suffix}"
    target.write_bytes(b"older")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(target)],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "could not be written whole" in result.stdout
    assert target.read_bytes() == b"older"
    assert os.listdir(tmp_path) == [target.name]


# -------------------------------------------------------------------------------------------------------------- mdtraj


def test_to_mdtraj_agrees_with_mdtrajs_own_reader(water_box: dict[str, Path]) -> None:
    universe = open_universe(water_box["gro"], [water_box["xtc"]])
    universe.trajectory[3]
    ours = to_mdtraj(universe)
    assert universe.trajectory.frame == 3
    theirs = mdtraj.load(water_box["xtc"], top=water_box["gro"])
    np.testing.assert_allclose(ours.xyz, theirs.xyz, atol=1e-5)
    np.testing.assert_allclose(ours.time, theirs.time, rtol=1e-6)
    np.testing.assert_allclose(ours.unitcell_vectors, theirs.unitcell_vectors, atol=1e-4)
    assert [str(r) for r in ours.topology.residues] == [str(r) for r in theirs.topology.residues]
    assert [a.element.symbol for a in ours.topology.atoms] == [a.element.symbol for a in theirs.topology.atoms]


def test_to_mdtraj_of_a_group_keeps_its_bonds(backbone: mda.AtomGroup) -> None:
    ours = to_mdtraj(backbone)
    assert ours.n_frames == 98
    assert ours.unitcell_lengths is None
    expected = in_memory_universe(backbone, backbone.positions[None], [0.0]).bonds.indices
    bonds = {tuple(sorted((a.index, b.index))) for a, b in ours.topology.bonds}
    assert bonds == {tuple(sorted(pair)) for pair in expected}


@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["no box", "triclinic"])
def test_mdtraj_round_trip(backbone: mda.AtomGroup, frames: np.ndarray, box: np.ndarray | None) -> None:
    times = np.array([3.0, 4.0, 6.0, 9.0, 9.5, 20.0])
    there = to_mdtraj(in_memory_universe(backbone, frames, times, box))
    back = from_mdtraj(there)
    np.testing.assert_allclose(all_positions(back), frames, atol=1e-5)
    np.testing.assert_array_equal(all_times(back), times)
    for name in ("names", "resids", "resnames", "segids"):
        np.testing.assert_array_equal(getattr(back.atoms, name), getattr(backbone, name))
    if box is None:
        assert back.dimensions is None
    else:
        np.testing.assert_allclose(back.dimensions, box, rtol=1e-5)
    again = to_mdtraj(back)
    assert again.topology == there.topology
    np.testing.assert_allclose(again.xyz, there.xyz, atol=1e-6)
    np.testing.assert_array_equal(back.copy().trajectory[4].time, 9.5)


def test_from_mdtraj_needs_a_topology() -> None:
    with pytest.raises(DataError, match="no topology"):
        from_mdtraj(mdtraj.Trajectory(np.zeros((1, 2, 3)), None))


def test_frames_that_mdanalysis_would_pass_over_in_silence_are_refused(tmp_path, water_box):
    one = water_box["gro"].read_text()
    (tmp_path / "one.gro").write_text(one + "\n")
    (tmp_path / "film.gro").write_text(one * 3)
    for given in ([], [tmp_path / "one.gro"]):
        assert len(open_universe(tmp_path / "one.gro", given).trajectory) == 1
    for given in ((tmp_path / "film.gro",), (water_box["gro"], [tmp_path / "film.gro"])):
        with pytest.raises(DataError, match=r"film\.gro holds several frames, .*gmx trjconv -f .* -o film\.xtc"):
            open_universe(*given)
    assert len(open_universe(tmp_path / "film.gro", [water_box["xtc"]]).trajectory) == 6  # it names the atoms alone


def test_a_structure_whose_package_is_missing_is_not_asked_for_as_xtc(tmp_path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("MDAnalysis.topology.MMCIFParser"), "HAS_GEMMI", False)
    (tmp_path / "a.cif").write_text("data_a")
    with pytest.raises(DataError, match="gemmi.*pip install that package, or write the structure as PDB"):
        open_universe(tmp_path / "a.cif")


def test_a_format_whose_package_is_missing_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.tng").write_bytes(b"tng")
    monkeypatch.setattr("MDAnalysis.coordinates.TNG.HAS_PYTNG", False)
    ignored: list = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with pytest.raises(DataError, match="pytng.*pip install that package, or write the run as XTC or DCD"):
        open_universe(files.PSF, [tmp_path / "a.tng"])
    gc.collect()
    assert not ignored  # a reader that was never whole is taken away without a word


@pytest.mark.parametrize("topology", [True, False])
def test_a_format_that_mdanalysis_does_not_know_is_named_and_not_all_that_it_knows(tmp_path, topology):
    (tmp_path / "a.pdbx").write_bytes(b"data_")
    arguments = (tmp_path / "a.pdbx", []) if topology else (files.PSF, [tmp_path / "a.pdbx"])
    with pytest.raises(DataError, match="it knows no format .pdbx.*suffix of its format") as said:
        open_universe(*arguments)
    assert "dict_keys" not in str(said.value)


def test_an_amber_run_with_the_topology_of_another_says_so(tmp_path):
    from MDAnalysisTests.datafiles import TRJ, PDB_small

    with pytest.raises(DataError, match="does not match the trajectory.*topology that the trajectory was written with"):
        open_universe(PDB_small, [TRJ])


def test_reading_leaves_no_file_beside_a_run(tmp_path):
    u = make_universe()
    write_forecast(tmp_path / "a.xtc", u.atoms, u.trajectory.coordinate_array.reshape(12, 10, 3), np.arange(12.0))
    there = set(tmp_path.iterdir())
    for frames in (
        open_universe(tmp_path / "a.pdb", [tmp_path / "a.xtc"]),
        stored_universe(u.atoms, tmp_path / "a.xtc"),
    ):
        assert [round(ts.time) for ts in frames.trajectory] == list(range(12)) and frames.trajectory[5].frame == 5
    assert set(tmp_path.iterdir()) == there


def test_bonds_of_atoms_that_are_not_there_are_refused(tmp_path):
    u = make_universe()
    files = scene.write(u, tmp_path / "a.psf"), scene.write(u, tmp_path / "a.dcd")
    assert len(open_universe(files[0], files[1:]).bonds) == len(u.bonds)
    text = files[0].read_text()
    title, first = "!NBOND: bonds\n       1", "!NBOND: bonds\n     999"
    assert title in text
    files[0].write_text(text.replace(title, first))
    with pytest.raises(DataError, match=r"a\.psf is damaged: its bonds name atom 999 of 10"):
        open_universe(files[0], files[1:])
