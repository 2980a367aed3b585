"""What must hold for every input, looked for among random ones: symmetries, images, files, clocks and recipes."""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest
import torch
from conftest import make_universe
from hypothesis import example, given, settings
from hypothesis import strategies as st
from MDAnalysis.lib.formats.libmdaxdr import XTCFile
from MDAnalysis.lib.mdamath import triclinic_vectors
from nn_systems import System, joined, random_rotation
from openmm import Vec3, app, unit
from test_forecasters import OURS
from test_metrics import autoregression

from egno_md.errors import SpacingError
from egno_md.forecast.forecasters import Known, free_forecasts
from egno_md.graph import GraphBuilder
from egno_md.molecule import neighbors
from egno_md.nn import operators
from egno_md.nn.spectral import TemporalConv, fourier_basis
from egno_md.specs import GraphSpec, Recipe
from egno_md.training import read_recipe, to_toml
from egno_md.training.recipe import known_keys
from egno_md.trajectory import Clock, from_mdtraj, open_universe, to_mdtraj, write_forecast

torch.set_num_threads(1)
settings.register_profile("few", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("few")

SEEDS = st.integers(0, 2**31 - 1)
FLAGS = st.booleans()


@st.composite
def systems(draw, largest=7) -> System:
    """A graph of any size, from a lone node to all pairs, with nodes on top of each other, far from the origin."""
    n, g = draw(st.integers(1, largest)), torch.Generator().manual_seed(draw(SEEDS))
    density, scale = draw(st.sampled_from([0.0, 0.3, 1.0])), draw(st.sampled_from([0.01, 1.0, 2.0]))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    pairs = (torch.rand(n, n, generator=g) < density) & ~torch.eye(n, dtype=torch.bool)
    edge_index = pairs.nonzero().T  # (2, E)
    chain = torch.stack([torch.arange(n - 1), torch.arange(1, n)])[:, : draw(st.integers(0, n))]
    local = torch.cat([chain, chain.flip(0)], dim=1)  # (2, L)
    pos = scale * normal(n, 3) + 20 * normal(1, 3)
    if draw(FLAGS):
        pos[-1] = pos[0]
    attr = normal(edge_index.shape[1], 2)
    return System(normal(n, 2), pos, scale * normal(n, 3), edge_index, attr, local, normal(local.shape[1], 1).abs())


OPTIONS = {
    "egno": {
        "time_conv": st.sampled_from(["full", "positions", "scalars", "none"]),
        **dict.fromkeys(["handed", "residual", "flat", "norm"], FLAGS),
        "reduce": st.sampled_from(["sum", "mean"]),
    },
    "eghno": {
        "clusters": st.integers(1, 4),
        "pooling_layers": st.integers(1, 2),
        "assignment": st.sampled_from(["shared", "per_time"]),
        "placement": st.sampled_from(["before", "end"]),
        "handed": FLAGS,
    },
    "flow": {
        "canonical": st.just(False),
        "handed": FLAGS,
        "informed": FLAGS,
        "base": st.sampled_from(["own", "any"]),
        "trunk": st.sampled_from(["egno", "eghno"]),
        "clusters": st.integers(1, 4),
    },
}


class Asked:
    """An operator with random options and weights, and the time points of its calls."""

    def __init__(self, name, options, n_times, seed):
        self.operator = operators.get(name)
        chosen = self.operator.options(hidden=8, layers=2, time_embedding=8, modes=min(2, n_times // 2 + 1), **options)
        self.reads = ("local_index",) if options.get("trunk") == "eghno" else self.operator.reads
        self.mirrored = self.operator.symmetry(chosen) == "E(3)"
        torch.manual_seed(seed)
        self.network = self.operator.build(2, 2, n_times, chosen).double().eval()
        with torch.no_grad():
            for weight in self.network.parameters():  # an untrained operator may stand still
                weight.add_(0.05 * torch.randn_like(weight))
        self.times = torch.arange(n_times).double() + torch.rand(n_times, dtype=torch.float64)

    def __call__(self, system, times=None, **how):
        reads = {name: getattr(system, name) for name in self.reads}
        with torch.no_grad():
            return self.network(*system[:5], times=self.times if times is None else times, **reads, **how)


@st.composite
def asked(draw, name, **fixed):
    options = {key: draw(values) for key, values in (OPTIONS[name] | fixed).items()}
    return Asked(name, options, draw(st.integers(1, 6)), draw(SEEDS))


def same(found, expected):
    """Equal up to rounding in float64; the origin is up to 100 away."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
def test_outputs_turn_and_move_with_the_input(name, data):
    operator, system = data.draw(asked(name)), data.draw(systems())
    mirror = operator.mirrored and data.draw(FLAGS)
    turn, shift = random_rotation(data.draw(SEEDS), mirror=mirror), 50 * torch.rand(3, dtype=torch.float64)
    image = torch.randn(system.edge_index.shape[1], 3, dtype=torch.float64)  # (E, 3)
    plain = operator(system, edge_shift=image)
    moved = operator(system.transformed(turn, shift), edge_shift=image @ turn.T)
    same(moved.pos, plain.pos @ turn.T + shift)
    same(moved.vel, plain.vel @ turn.T)


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
def test_the_order_of_nodes_and_edges_means_nothing(name, data):
    operator, system = data.draw(asked(name)), data.draw(systems())
    plain, g = operator(system), torch.Generator().manual_seed(data.draw(SEEDS))
    nodes, edges, local = (
        torch.randperm(n, generator=g) for n in (system.n_nodes, len(system.edge_attr), len(system.local_attr))
    )
    shuffled = system.permuted(nodes)
    shuffled = shuffled._replace(
        edge_index=shuffled.edge_index[:, edges], edge_attr=system.edge_attr[edges],
        local_index=shuffled.local_index[:, local], local_attr=system.local_attr[local],
    )  # fmt: skip
    found = operator(shuffled)
    same(found.pos, plain.pos[:, nodes])
    same(found.vel, plain.vel[:, nodes])


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
def test_a_graph_does_not_know_its_batch(name, data):
    operator, alone = data.draw(asked(name)), data.draw(st.lists(systems(5), min_size=2, max_size=4))
    together, batch = joined(alone)
    out = operator(together, batch=batch)
    for k, system in enumerate(alone):
        single = operator(system)
        same(out.pos[:, batch == k], single.pos)
        same(out.vel[:, batch == k], single.vel)


@pytest.mark.parametrize("name", ["egno", "eghno"])
@given(data=st.data())
def test_without_convolutions_other_time_points_change_nothing(name, data):
    fixed = {"time_conv": st.just("none")}
    if name == "eghno":  # whose clusters are otherwise made of all time points
        fixed["assignment"] = st.just("per_time")
    operator, system = data.draw(asked(name, **fixed)), data.draw(systems())
    more = torch.rand(data.draw(st.integers(1, 9)), dtype=torch.float64) * 8
    times = torch.cat([operator.times, more])  # (T', )
    order = torch.randperm(len(times), generator=torch.Generator().manual_seed(data.draw(SEEDS)))
    fine = operator(system, times[order])
    same(fine.pos[order.argsort()][: len(operator.times)], operator(system).pos)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), SEEDS)
def test_a_convolution_does_not_see_how_finely_a_signal_is_sampled(modes, more, finer, seed):
    """As theorem 4.1 has it: of functions whose frequencies are all resolved, whatever the number of points."""
    n_times = 2 * modes - 2 + more
    torch.manual_seed(seed)
    conv = TemporalConv(3, modes, 1.0).double()
    amplitude = torch.randn(modes, 2, 4, 3, dtype=torch.float64)  # (M, 2, N, C)

    def convolved(n: int) -> torch.Tensor:
        angle = 2 * torch.pi * torch.arange(modes).double()[:, None] * torch.arange(n) / n  # (M, T)
        waves = torch.stack([angle.cos(), angle.sin()], dim=1)  # (M, 2, T)
        signal = torch.einsum("mkt,mknc->tnc", waves, amplitude)
        return conv(signal, fourier_basis(n, modes, signal)).detach()

    same(convolved(finer * n_times)[::finer], convolved(n_times))


@pytest.fixture(scope="module")
def fitted():
    frames = autoregression(120, 6, 0.7)
    known = Known([frames[:100]], (1, 2, 3, 4))
    return frames, {name: free_forecasts()[name].fitted(known) for name in OURS}


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=10)
@given(data=st.data())
def test_free_forecasts_say_the_same_at_a_time_whatever_others_are_asked(name, data, fitted):
    frames, forecasts = fitted
    start = data.draw(st.integers(100, 119))
    past = frames[start - 19 : start + 1][None]
    times = np.sort(data.draw(st.lists(st.floats(0.05, 4.0), min_size=2, max_size=9, unique=True)))
    some = np.sort(data.draw(st.lists(st.sampled_from(range(len(times))), min_size=1, unique=True)))
    whole, part = (forecasts[name](past, asked_for) for asked_for in (times, times[some]))
    np.testing.assert_allclose(part, whole[:, :, some], atol=1e-8)


@st.composite
def boxes(draw, least, most):
    """Right-angled or skewed; where the lengths are nearly equal, in the reduced form that OpenMM wants."""
    angles = (90.0, 90.0, 90.0) if draw(FLAGS) else tuple(draw(st.floats(75.0, 105.0)) for _ in range(3))
    return np.array([draw(st.floats(least, most)) for _ in range(3)] + list(angles))


def by_pair(edge_index, numbers):
    """Rows sorted by receiver, sender, and then by the numbers, so that the images of a pair have no order."""
    rows = np.concatenate([np.asarray(edge_index).T, np.asarray(numbers, np.float64)], axis=1)
    return rows[np.lexsort(np.round(rows, 3).T[::-1])]


@given(boxes(6.0, 20.0), st.floats(2.0, 9.0), SEEDS, FLAGS)
def test_neighbours_do_not_see_which_image_of_an_atom_is_given(box, cutoff, seed, in_a_tree):
    """Nor who looks for them."""
    rng, cell = np.random.default_rng(seed), triclinic_vectors(box, dtype=np.float64)
    positions = rng.uniform(-30, 30, (12, 3))
    moved = positions + rng.integers(-3, 4, (12, 3)) @ cell

    def found(xyz, tree):
        with pytest.MonkeyPatch.context() as patch:
            if tree:
                patch.delitem(sys.modules, "torch")
            edges, shift = neighbors.radius_graph(xyz, cutoff, box)
        delta = xyz[edges[0]] - xyz[edges[1]] - shift  # (E, 3)
        distance = np.linalg.norm(delta, axis=1)
        assert (distance <= cutoff + 1e-9).all()
        inside = distance < cutoff - 1e-9  # whether one at the cutoff itself counts is a matter of rounding
        return by_pair(edges[:, inside], delta[inside])

    np.testing.assert_allclose(found(moved, in_a_tree), found(positions, False), atol=1e-8)


@given(boxes(8.0, 40.0), st.floats(3.0, 9.0), SEEDS)
def test_a_graph_does_not_see_which_image_of_a_molecule_is_given(box, cutoff, seed):
    rng, cell = np.random.default_rng(seed), triclinic_vectors(box, dtype=np.float64)
    u = make_universe(1)
    u.delete_bonds([(4, 5)])  # two molecules of five atoms, bent so that they fit into the smallest box
    shape = np.array([[0, 0, 0], [1.4, 0, 0], [1.4, 1.4, 0], [0, 1.4, 0], [0, 1.4, 1.4]])
    positions = np.concatenate([shape, shape + rng.uniform(2, 15, 3)]) + rng.normal(scale=0.05, size=(10, 3))
    spec = GraphSpec(
        select="all", cutoff=cutoff, node_features=("speed",), edge_features=("distance", "hop", "bond", "rbf")
    )
    builder = GraphBuilder(u.atoms, spec)
    moved = positions + np.repeat(rng.integers(-2, 3, (2, 3)) @ cell, 5, axis=0)
    graphs = [builder(x, np.zeros((10, 3)), box) for x in (positions, moved)]
    plain, other = (by_pair(graph.edge_index, graph.edge_attr) for graph in graphs)
    np.testing.assert_allclose(other, plain, atol=2e-4)
    np.testing.assert_allclose(graphs[1].local_attr, graphs[0].local_attr, atol=1e-6)


class Frames:
    """Some frames with times in ps and a box, in Angstrom."""

    def __init__(self, n_frames, box, dt, first, scale, seed):
        rng = np.random.default_rng(seed)
        self.u = make_universe(1)
        self.xyz = (scale * rng.normal(size=(n_frames, 10, 3))).astype(np.float32)
        self.dt, self.first, self.box = dt, first, box  # `first` in spacings
        self.times = dt * (first + np.arange(n_frames))

    @property
    def boxes(self):
        return None if self.box is None else np.tile(self.box, (len(self.xyz), 1)).astype(np.float32)

    def universe(self):
        u = self.u.copy()
        u.load_new(self.xyz, dt=self.dt, dimensions=self.boxes, time_offset=self.dt * self.first)
        return u

    def to_mdtraj(self):
        return to_mdtraj(self.universe())

    def topology(self, folder):
        write_forecast(folder / "t.xtc", self.u.atoms, self.xyz[:1] % 100, [0.0])
        return folder / "t.pdb"


def by_us(frames, path):
    write_forecast(path, frames.u.atoms, frames.xyz, frames.times, boxes=frames.boxes, dt=frames.dt)


def by_mdanalysis(frames, path):
    # Its DCD writer asks for the number of the first frame.
    options = {"dt": frames.dt, "istart": frames.first} if path.suffix == ".dcd" else {}
    u = frames.universe()
    with mda.Writer(str(path), 10, **options) as writer:
        for _ in u.trajectory:
            writer.write(u.atoms)


def by_mdtraj(frames, path):
    frames.to_mdtraj().save(str(path))


def by_openmm(frames, path):
    vectors = None
    if frames.box is not None:
        vectors = [Vec3(*row) for row in triclinic_vectors(frames.box, np.float64).tolist()] * unit.angstrom
    topology, dt = frames.to_mdtraj().topology.to_openmm(), frames.dt * unit.picosecond
    if vectors is not None:
        topology.setPeriodicBoxVectors(vectors)
    if path.suffix == ".dcd":
        stream = open(path, "wb")
        file = app.DCDFile(stream, topology, dt, frames.first)
    else:
        file = app.XTCFile(str(path), topology, dt, frames.first)
    for xyz in frames.xyz.astype(float):
        file.writeModel(xyz * unit.angstrom, periodicBoxVectors=vectors)
    if path.suffix == ".dcd":
        stream.close()


WRITERS = [(by_us, ("dcd", "xtc")), (by_openmm, ("dcd", "xtc"))]
WRITERS += [(writer, ("dcd", "xtc", "trr")) for writer in (by_mdanalysis, by_mdtraj)]


@pytest.mark.parametrize(("writer", "suffix"), [(writer, suffix) for writer, all_ in WRITERS for suffix in all_])
@settings(max_examples=12)
@given(
    st.builds(
        Frames,
        st.integers(1, 7),
        st.none() | boxes(80.0, 110.0),
        st.sampled_from([0.002, 0.5, 1.0, 2.4, 25.0, 1000.0]),
        st.integers(0, 2000),
        st.floats(0.5, 200.0),
        SEEDS,
    )
)
def test_every_reader_gives_what_any_writer_was_given(writer, suffix, frames):
    # mdtraj writes no times into a DCD.
    timeless = writer is by_mdtraj and suffix == "dcd"
    rounding = 0.0051 if suffix == "xtc" else 1e-6 * np.abs(frames.xyz).max()
    near = {"rtol": 2e-6, "atol": 1e-5 if suffix == "xtc" else 1e-9}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        path = folder / f"r.{suffix}"
        writer(frames, path)
        top = frames.topology(folder)
        ours, theirs = open_universe(top, [path]), mda.Universe(str(top), str(path))
        mdtrajs = mdtraj.load(str(path), top=str(top))
        assert len(ours.trajectory) == len(theirs.trajectory) == len(mdtrajs) == len(frames.xyz)
        for u in (ours, theirs):
            for ts, xyz, time in zip(u.trajectory, frames.xyz, frames.times, strict=True):
                np.testing.assert_allclose(ts.positions, xyz, atol=rounding)
                if not timeless:
                    np.testing.assert_allclose(ts.time, time, **near)
                if frames.box is None:
                    assert ts.dimensions is None or not ts.dimensions[:3].any()
                else:
                    np.testing.assert_allclose(ts.dimensions, frames.box, rtol=2e-5)
        if len(frames.xyz) > 1 and not timeless:
            clock = Clock.of(ours)
            assert len(clock.stretches) == 1 and clock.spacing == pytest.approx(frames.dt, rel=1e-3)
        np.testing.assert_allclose(10 * mdtrajs.xyz, frames.xyz, atol=rounding + 1e-5)
        if suffix != "dcd":
            np.testing.assert_allclose(mdtrajs.time, frames.times, **near)
        back = from_mdtraj(mdtrajs, dt=frames.dt)
        for ts, xyz in zip(back.trajectory, frames.xyz, strict=True):
            np.testing.assert_allclose(ts.positions, xyz, atol=rounding + 1e-5)
            if frames.box is not None:
                np.testing.assert_allclose(ts.dimensions, frames.box, rtol=2e-5)


@st.composite
def ticks(draw):
    """Times in spacings: stretches of three frames or more, and what is between them: gaps, repeats, steps back."""
    numbers, now = [], 0
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(3, 6))
        numbers += range(now, now + length)
        now += length - 1 + draw(st.sampled_from([0, 2, 3, 5, -1, -2, -40]))
    return np.array(numbers) - min(numbers)


def stretches_of(numbers):
    """By the definition: a frame belongs to the stretch before it where it is one spacing later."""
    stretches, last = [[0]], numbers[0]
    for k in range(1, len(numbers)):
        if numbers[k] == last + 1:
            stretches[-1].append(k)
        elif numbers[k] != last:
            stretches.append([k])
        last = numbers[k]
    return stretches


def shifted_of(numbers, frame, by):
    """By the definition: the nearest frame with that time that is reached without a step back in time."""
    k = frame
    while by and 0 <= k + np.sign(by) < len(numbers):
        k += int(np.sign(by))
        if (numbers[k] - numbers[k - int(np.sign(by))]) * by < 0:
            return None
        if numbers[k] == numbers[frame] + by:
            return k
    return None if by else frame


@given(ticks(), st.sampled_from([0.002, 0.5, 1.0, 2.4, 10.0, 1 / 3]), st.integers(0, 10_000), FLAGS, st.data())
def test_the_clock_of_any_run_is_that_of_the_definition(numbers, dt, first, with_steps, data):
    u = make_universe(1)
    with tempfile.TemporaryDirectory() as name:
        path, top = Path(name) / "r.xtc", Path(name) / "t.pdb"
        u.atoms.write(str(top))
        with XTCFile(str(path), "w") as file:
            for k, number in enumerate(numbers):
                step = 500 * (first + number) if with_steps else k
                file.write(u.atoms.positions / 10, np.zeros((3, 3)), step, dt * (first + number), 1000.0)
        clock = Clock.of(open_universe(top, [path]))
        assert clock.spacing == pytest.approx(dt, rel=1e-4)
        assert [stretch.tolist() for stretch in clock.stretches] == stretches_of(numbers)
        for _ in range(5):
            frame = data.draw(st.integers(0, len(numbers) - 1))
            by = data.draw(st.integers(-6, 6))
            assert clock.shifted(frame, by) == shifted_of(numbers, frame, by)
            assert clock.shifted(frame, by + 0.5) is None
        whole = data.draw(st.integers(1, 60))
        assert clock.per_stride(whole * dt) == clock.per_stride(whole * dt, whole) == whole
        wrong = data.draw(st.integers(1, 60).filter(lambda other: other != whole))
        for stride, every in ((whole * dt, wrong), ((whole + 0.5) * dt, data.draw(st.none() | st.just(wrong)))):
            with pytest.raises(SpacingError) as refused:
                clock.per_stride(stride, every)
            # The spacing that the message tells is the one with which the same request is right.
            (cure,) = re.findall(r"--dt ([\d.e+-]+)\)", str(refused.value))
            told = Clock.of(open_universe(top, [path], dt=float(cure)))
            assert told.per_stride(stride, every) == (every or 1)


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | FLAGS
VALUES = st.recursive(
    st.text(max_size=8) | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


@st.composite
def recipes(draw):
    known = known_keys(Recipe())
    known["data"] = [key for key in known["data"] if key not in ("name", "systems")]
    known["model"].remove("operator")
    sections = {name: draw(st.dictionaries(st.sampled_from(keys), VALUES, max_size=4)) for name, keys in known.items()}
    names = st.text(max_size=8).map(lambda name: str(Path("/", name)))
    system = st.fixed_dictionaries(
        {
            "topology": names,
            "trajectories": st.lists(names, max_size=3),
            "hold_out": st.lists(names, max_size=1),
            "name": st.text(),
        }
    )
    sections["data"] |= draw(st.just({}) | st.fixed_dictionaries({"systems": st.lists(system, min_size=1, max_size=2)}))
    return Recipe(
        preset=draw(st.sampled_from([None, "default", "paper"])), init=draw(st.none() | st.text()), **sections
    )


@settings(max_examples=30)
@given(recipes())
@example(Recipe(data={"every": {"\U00010000": ""}}))  # a key beyond 16 bits, whose JSON has two escapes
@example(Recipe(init="\x7f"))
@example(Recipe(data={"every": [{"two words": 1}]}))
def test_a_recipe_that_is_written_is_read_again(recipe):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "r.toml"
        path.write_text(to_toml(recipe))
        assert read_recipe(path) == recipe
