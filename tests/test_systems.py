"""The systems that the paper compares with: closed forms, what they share with EGNO and EGHNO, a training of each."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import require
from nn_systems import random_system, relative_error
from test_training import SMALL, called, write_runs

from egno_md import load_model
from egno_md.datasets.nbody import NBodyOptions, load
from egno_md.errors import MissingPackageError, UsageError
from egno_md.forecast.model import new_model
from egno_md.forecast.operator import apply_operator
from egno_md.graph import GraphBuilder, collate
from egno_md.graph.windows import Run, TrajectoryWindows
from egno_md.molecule.molecule import Molecule
from egno_md.nn import EGNO, from_official, operators
from egno_md.nn.baselines import EGHN, EGNN
from egno_md.nn.testing import check_operator
from egno_md.specs import GraphSpec, ModelSpec, TrainSpec, WindowSpec
from egno_md.training import fit

ONE_POINT = [name for name in operators.names() if operators.get(name).points == "last"]
PATHS = ["egnn-r", "egnn-s", "egnn-tb"]
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def built(name: str, n_times: int = 1, seed: int = 0, **options) -> torch.nn.Module:
    """A small one with two node scalars and two edge scalars, in double precision."""
    torch.manual_seed(seed)
    operator = operators.get(name)
    sizes = {"hidden": 8, "layers": 2, "time_embedding": 8, "start": "paper"}
    chosen = {key: value for key, value in (sizes | options).items() if key in operator.options.model_fields}
    return operator.build(2, 2, n_times, operator.options(**chosen)).double()


def test_linear_learns_the_time_of_particles_that_fly_straight(tmp_path):
    rng = np.random.default_rng(0)
    velocity = rng.normal(size=(6, 1, 4, 3))
    runs = rng.normal(size=(6, 1, 4, 3)) + velocity * np.arange(20)[:, None, None]  # (R, F, N, 3)
    graph = GraphSpec(select="all", cutoff=np.inf, hops=0, node_features=("speed",), edge_features=("distance",))
    window = WindowSpec(stride_ps=1.0, n_times=1, span=3)
    builder = GraphBuilder(Molecule(elements=["C"] * 4), graph)
    windows = TrajectoryWindows([Run(x.astype(np.float32), builder) for x in runs], window)
    spec = TrainSpec(batch_size=16, learning_rate=0.1, max_epochs=40, schedule="cosine", ema_decay=0.0)
    model = fit(new_model(graph, window, ModelSpec(operator="linear")), windows, windows, spec, work_dir=tmp_path)
    assert model.network.time.item() == pytest.approx(3.0, abs=0.01)


def test_rf_is_what_a_hand_says():
    network = built("rf", hidden=2, layers=1)
    (layer,) = network.layers
    with torch.no_grad():
        layer.push[0].weight.copy_(torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.0, 0.0]]))
        layer.push[0].bias.copy_(torch.tensor([0.0, 1.0]))
        layer.push[2].weight.copy_(torch.tensor([[0.25, 1.0]]))
        layer.velocity[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        layer.velocity[0].bias.zero_()
        layer.velocity[2].weight.copy_(torch.tensor([[2.0, 0.0]]))
        layer.velocity[2].bias.copy_(torch.tensor([0.5]))
    pos = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]).double()
    vel = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]).double()
    edges = torch.tensor([[0, 0, 1], [1, 2, 0]])  # 0 receives from 1 and 2, 1 from 0
    attr = torch.tensor([[2.0, 9.0], [0.0, 9.0], [-2.0, 9.0]]).double()
    out = network(torch.zeros(3, 2).double(), pos, vel, edges, attr).pos

    def push(length, scalar):
        first = length + 0.5 * scalar
        return np.tanh(0.25 * first + 0.2 * (1 - length))  # 1 - length < 0: the slope of the leaky ReLU

    expected = np.array(
        [
            [-3 * push(3, 2) / 2, -4 * push(4, 0) / 2, 2 * 1 + 0.5],
            [3 + 3 * push(3, -2), 2 * (2 * 2 + 0.5), 0.0],
            [0.0, 4.0, 0.0],
        ]
    )
    np.testing.assert_allclose(out[0].detach().numpy(), expected, rtol=1e-12)


def test_mpnn_is_its_formula():
    network, system = built("mpnn"), random_system(6)
    h = network.embedding(torch.cat([system.h, system.pos, system.vel], dim=1))
    for layer in network.layers:
        received = torch.zeros_like(h)
        for (i, j), e in zip(system.edge_index.T.tolist(), system.edge_attr, strict=True):
            received[i] = received[i] + layer.edge(torch.cat([h[i], h[j], e]))
        h = h + layer.node(torch.cat([h, received], dim=1))
    torch.testing.assert_close(network(*system[:5]).pos[0], network.decoder(h), **TIGHT)


def one_of_two(system):
    """Images for the edges, and the graph of each node: the edges between the two graphs are left out."""
    batch = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    kept = batch[system.edge_index[0]] == batch[system.edge_index[1]]
    system = system._replace(edge_index=system.edge_index[:, kept], edge_attr=system.edge_attr[kept])
    shift = torch.randn(len(system.edge_attr), 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return system, shift, batch


@pytest.mark.parametrize("size", [0.3, 30.0])  # with large weights pushes reach their bound
def test_clofnet_is_its_formula(size):
    network = built("clofnet", hidden=6)
    system, shift, batch = one_of_two(random_system(7))
    with torch.no_grad():
        for layer in network.layers:
            layer.coord[-1].weight.copy_(size * torch.randn(3, 6))

    def frame(x_i, x_j):
        r, normal = x_i - x_j, torch.linalg.cross(x_i, x_j)
        r, normal = r / (1 + r.norm()), normal / (1 + normal.norm())
        return [r, normal, torch.linalg.cross(r, normal)]

    centre = torch.stack([system.pos[batch == k].mean(0) for k in (0, 1)])[batch]
    x, v, h = system.pos - centre, system.vel, network.embedding(system.h)
    edges = list(zip(system.edge_index.T.tolist(), system.edge_attr, shift, strict=True))
    scalars = []
    for (i, j), e, s in edges:
        along = [torch.stack([f @ u for f in frame(x[i], x[j] + s)]) for u in (x[i], x[j] + s, v[i], v[j])]
        cos = along[0] @ along[1] / (along[0].norm() * along[1].norm())
        scalars.append(network.fuse(torch.cat([e, torch.stack([(1 - cos**2).sqrt(), cos]), *along])))
    reached = []
    for layer in network.layers:
        received, pushed, count = torch.zeros_like(h), torch.zeros_like(x), torch.zeros(7, 1)
        for ((i, j), _, s), e in zip(edges, scalars, strict=True):
            square = (x[i] - x[j] - s).square().sum()[None]
            m = layer.edge(torch.cat([h[i], h[j], square, e]))
            push = sum(f * c for f, c in zip(frame(x[i], x[j] + s), layer.coord(m), strict=True))
            reached.append(float(push.detach().abs().max()))
            received[i], pushed[i], count[i] = received[i] + m, pushed[i] + push.clip(-100, 100), count[i] + 1
        new = x + pushed / count.clamp(min=1) + layer.velocity(h) * v
        x, h = new, layer.norm(h + layer.node(torch.cat([h, received], dim=1)))
    assert (max(reached) > 150) == (size > 1)
    out = network(*system[:5], batch=batch, edge_shift=shift)
    torch.testing.assert_close(out.pos[0], x + centre, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.h[0], h, rtol=1e-9, atol=1e-9)
    assert count.min() < 2  # the mean is over those that are there


@pytest.mark.parametrize("name", ["tfn", "se3-transformer"])
def test_tensor_networks_are_their_formulas(name):
    """But for the products of irreps, which are of e3nn: of degree 1 the harmonics are 1 and sqrt(3) r / |r|."""
    require(name)
    network = built(name, channels=4, degree=1, heads=2)
    system, shift, _ = one_of_two(random_system(7))
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    edges = list(zip(system.edge_index.T.tolist(), system.edge_attr, shift, strict=True))
    senders = [[e for e, ((i, _), *_) in enumerate(edges) if i == k] for k in range(7)]
    assert any(len(own) > 1 for own in senders)

    def kernel(convolution, f):
        out = []
        for (i, j), e, s in edges:
            r = system.pos[i] - system.pos[j] - s
            harmonics = torch.cat([torch.ones(1).double(), 3**0.5 * r / r.norm()])
            weights = convolution.radial(torch.cat([r.norm()[None], e])[None])
            out.append(convolution.mix(convolution.product(f[j][None], harmonics[None], weights))[0])
        return torch.stack(out)

    def heads(values, channels):
        """Of 0e and 1e by head: scalars and vectors (2, numbers of a head)."""
        scalars, vectors = values[:channels].reshape(2, -1), values[channels:].reshape(2, -1)
        return torch.cat([scalars, vectors], dim=1)

    f = torch.cat([system.h, system.vel], dim=1)
    for k, layer in enumerate(network.layers):
        if name == "tfn":
            messages = kernel(layer.kernel, f)
            f = layer.own(f) + torch.stack([messages[own].sum(0) / max(len(own), 1) for own in senders])
        else:
            scalar = sum(channels for channels, ir in layer.query_irreps if ir.l == 0)
            query, key, value = layer.query(f), kernel(layer.key, f), kernel(layer.value, f)
            rows = []
            for i, own in enumerate(senders):
                total = torch.zeros(16).double()
                if own:
                    q = heads(query[i], scalar)
                    logits = torch.stack([(q * heads(key[e], scalar)).sum(1) for e in own]) / q.shape[1] ** 0.5
                    for e, share in zip(own, logits.softmax(0), strict=True):  # (2,)
                        total += value[e] * torch.cat([share.repeat_interleave(2), share.repeat_interleave(6)])
                rows.append(total)
            f = layer.own(f) + layer.out(torch.stack(rows))
        if k == 0:
            scalars, vectors = f[:, :4], f[:, 4:].reshape(7, 4, 3)
            gate = torch.sigmoid(vectors.norm(dim=2, keepdim=True) + network.nonlinear[0].bias[:, None])
            f = torch.cat([scalars * torch.sigmoid(scalars), (vectors * gate).reshape(7, 12)], dim=1)
    out = network(*system[:5], edge_shift=shift)
    torch.testing.assert_close(out.pos[0], system.pos + f, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.vel[0], system.vel, **TIGHT)


@pytest.mark.parametrize("name", ["rf", "clofnet"])
def test_a_push_is_small_before_training(name):
    network = built(name, layers=1)
    (layer,) = network.layers
    weight = (layer.push if name == "rf" else layer.coord)[2].weight.abs().max().item()
    bound = 0.001 * (6 / (8 + (1 if name == "rf" else 3))) ** 0.5
    assert 0.7 * bound < weight <= bound


def test_egnn_and_eghn_are_egno_and_eghno_of_one_time_point(official):
    system, egnn = random_system(7), built("egnn")
    assert isinstance(egnn, EGNN)
    plain = EGNO(2, 2, 8, 2, time_embedding=0, time_conv="none").double()
    plain.load_state_dict(egnn.state_dict())
    three = plain(*system[:5], times=3).pos
    torch.testing.assert_close(egnn(*system[:5]).pos, three[:1], **TIGHT)
    assert torch.equal(three[0], three[2])  # nothing tells it the time
    case = official("eghn_small")
    config, whole = case.config, from_official(case.weights, case.config)
    eghn = EGHN(
        config["in_node_nf"], config["in_edge_nf"], config["in_edge_nf"], config["hidden_nf"],
        config["layer_per_block"], clusters=config["n_cluster"], pooling_layers=config["layer_pooling"],
        decoder_layers=config["layer_decoder"],
    )  # fmt: skip
    eghn.load_state_dict(whole.state_dict())
    system = case.system()
    out = eghn(*(x.float() if x.is_floating_point() else x for x in system[:5]), **system.local, batch=case.batch)
    assert relative_error(out.pos[0], case.arrays["out_x"]) < 1e-5


def test_egnn_s_reads_point_k_from_layer_k():
    network, system = built("egnn-s", n_times=3, layers_per_point=2), random_system(7)
    path = network(*system[:5]).pos
    assert path.shape == (3, 7, 3) and len(network.layers) == 6
    for k in range(3):
        shorter = built("egnn", layers=2 * (k + 1))
        shorter.embedding.load_state_dict(network.embedding.state_dict())
        shorter.block.layers.load_state_dict(network.layers[: 2 * (k + 1)].state_dict())
        torch.testing.assert_close(path[k], shorter(*system[:5]).pos[0], **TIGHT)


def test_egnn_r_goes_on_from_what_it_predicted_and_learns_from_the_first_step():
    system = random_system(6)._replace(pos=random_system(6).pos / 5)
    network = built("egnn-r", n_times=3, step=0.5).eval()
    egnn = built("egnn")
    egnn.load_state_dict(network.block.state_dict())
    h, pos, vel = system[:3]
    for point, speed in zip(*network(*system[:5])[:2], strict=True):
        after = egnn(h, pos, vel, *system[3:5]).pos[0]
        vel, pos = (after - pos) / 0.5, after
        h = torch.cat([vel.norm(dim=1, keepdim=True), h[:, 1:]], dim=1)
        torch.testing.assert_close(point, pos, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(speed, vel, rtol=1e-9, atol=1e-9)
    out = network.train()(*system[:5])
    first = egnn(*system[:5]).pos
    torch.testing.assert_close(out.pos[:1], first, **TIGHT)
    torch.testing.assert_close(out.pos[2], (first[0] + 2 * (first[0] - system.pos)), **TIGHT)
    (of_all,) = torch.autograd.grad(out.pos.square().sum(), network.block.embedding.weight)
    (of_first,) = torch.autograd.grad(first.square().sum(), egnn.embedding.weight)
    torch.testing.assert_close(of_all, of_first, **TIGHT)


def test_egnn_tb_makes_block_after_block():
    system = random_system(6)._replace(pos=random_system(6).pos / 5)
    network = built("egnn-tb", n_times=5, step=0.5, speed=False, start="static")
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    path = network(*system[:5]).pos
    blocks = EGNO(2, 2, 8, 2, time_embedding=8, time_conv="none").double()
    blocks.load_state_dict(network.block.state_dict())
    h, pos, vel = system[:3]
    for first, count in ((0, 2), (2, 2), (4, 1)):
        some = blocks(h, pos, vel, *system[3:5], times=count).pos
        torch.testing.assert_close(path[first : first + count], some, **TIGHT)
        pos, vel = some[-1], (some[-1] - (some[-2] if count > 1 else pos)) / 0.5


def test_no_modes_is_no_convolution():
    system = random_system(5)
    for name in ("egno", "eghno"):
        further = {} if name == "egno" else system.local
        outs = [built(name, 3, **o)(*system[:5], **further).pos for o in ({"modes": 0}, {"time_conv": "none"})]
        assert torch.equal(*outs)


@pytest.mark.parametrize("name", ONE_POINT)
def test_a_window_of_many_points_is_refused_with_a_cure_that_works(name, tmp_path):
    require(name)
    with pytest.raises(UsageError, match=r"set window.n_times = 1 .* as --window 1 --span 5; found n_times = 5"):
        built(name, n_times=5)
    if name == "egnn":  # whose message is everyone's
        top = write_runs(tmp_path, {"a.dcd": 90})
        files = [top, tmp_path / "a.dcd", *SMALL, "--operator", name, "--epochs", 1, "-o", tmp_path / "m.safetensors"]
        assert called(*files, "--window", 5).exit_code == 2
        done = called(*files, "--window", 1, "--span", 5)
        assert done.exit_code == 0, done.stderr


def test_points_that_a_system_does_not_have_are_refused():
    system, halves = random_system(5), torch.tensor([0.0, 0.5])
    with pytest.raises(UsageError, match=r"end of its window and no other time point.*found the time points \[0.0, 1"):
        built("egnn")(*system[:5], times=2)
    with pytest.raises(UsageError, match=r"none between them: ask for substeps=1; found \[0.0, 0.5\]"):
        built("egnn-r", 2)(*system[:5], times=halves)
    with pytest.raises(UsageError, match="each of the 2 time points that it was built for; found 3"):
        built("egnn-s", 2)(*system[:5], times=3)
    sequence = system._replace(pos=system.pos.expand(2, 5, 3), vel=system.vel.expand(2, 5, 3))
    with pytest.raises(UsageError, match="one start frame: set window.history = 1 and model.prior = static"):
        built("egnn-s", 2)(*sequence[:5])


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "egno_md.nn.systems.passing", raising=False)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(MissingPackageError, match="needs torch_geometric"):
        built("rf")


@pytest.mark.parametrize("name", ["clofnet", "tfn", "se3-transformer"])
def test_what_claims_no_reflections_tells_a_molecule_from_its_mirror_image(name):
    require(name)
    claims_more = dataclasses.replace(operators.get(name), symmetry=lambda options: "E(3)")
    small = {"hidden": 8, "layers": 2, "channels": 4, "heads": 2}
    options = {key: value for key, value in small.items() if key in claims_more.options.model_fields}
    with pytest.raises(AssertionError) as caught:
        check_operator(claims_more, options=options)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith("- reflection: the positions do not follow")


def test_heads_share_out_the_channels():
    with pytest.raises(UsageError, match="heads must share out channels = 6 evenly, found 4"):
        operators.options_of(ModelSpec(operator="se3-transformer", channels=6))


def test_the_page_counts_parameters_right():
    page = (Path(__file__).parents[1] / "docs" / "systems.md").read_text()
    counted = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([\d ]+) \|$", page, re.MULTILINE))
    assert counted.keys() == set(operators.names()) - {"flow"}
    for name, count in counted.items():
        if importlib.util.find_spec("e3nn") or name not in ("tfn", "se3-transformer"):
            operator = operators.get(name)
            network = operator.build(1, 2, 1 if operator.points == "last" else 5, operator.options())
            assert sum(weight.numel() for weight in network.parameters()) == int(count.replace(" ", "")), name


def test_naming_the_operators_imports_no_library():
    code = "import sys; from egno_md.nn import operators; operators.names(); print([m for m in ('torch_geometric', "
    code += "'e3nn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FEW = {"train": 40, "validation": 10, "test": 10}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "nbody.toml"
    path.write_text("[data]\nname = 'nbody'\n" + "\n".join(f"{key} = {value}" for key, value in FEW.items()))
    return path


#: The dearest of those whose like is trained too.
DEAR = ("eghn", "clofnet", "se3-transformer")
TRAINED = [pytest.param(n, marks=pytest.mark.slow if n in DEAR else ()) for n in [*ONE_POINT, *PATHS]]


@pytest.mark.parametrize("name", TRAINED)
def test_each_is_trained_by_the_one_loop_and_comes_back(name, recipe_file, tmp_path):
    require(name)
    options = operators.get(name).options.model_fields
    small = {"heads": 2, "hidden": 8, "layers": 2, "channels": 4, "time_embedding": 8, "step": 0.2, "clusters": 2}
    given = [f"--set=model.{key}={value}" for key, value in small.items() if key in options]
    window = ["--window", 1 if name in ONE_POINT else 5, "--set", "window.span=10"]
    out = tmp_path / "m.safetensors"
    done = called(recipe_file, "--operator", name, *given, *window, "--epochs", 10, "--batch-size", 4, "--lr", 0.01,
                  "-o", out)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    model = load_model(out)
    split = load(NBodyOptions(**FEW), model.graph, model.window)
    batch = collate([split.train[k] for k in range(len(split.train))])
    torch.manual_seed(0)
    before = new_model(model.graph, model.window, model.spec)
    errors = []
    for some in (before, model):
        with torch.no_grad():
            path = apply_operator(some, batch).pos  # (T, N, 3)
        errors.append(float((path - batch.y.transpose(0, 1)).square().mean()))
    assert errors[1] < 0.95 * errors[0]
    parameters = sum(weight.numel() for weight in model.network.parameters())
    assert model.n_parameters == parameters
