"""The networks written out as their descriptions have them: one graph, one time point and one edge after the other."""

from __future__ import annotations

import math

import pytest
import torch
from nn_systems import joined, random_system

from egno_md.nn import EGHNO, EGNO
from egno_md.nn.baselines import EGNN, RolledEGNN
from egno_md.nn.egnn import EGNNLayer
from egno_md.nn.flow import FlowOptions, flow_network
from egno_md.nn.pooling import DecoderLayer, PoolingLayer
from egno_md.nn.spectral import NodeEmbedding

cat, stack = torch.cat, torch.stack


def stirred(network, seed=0, scale=0.3):
    """The network in double precision with every weight at random: none of its parts is without influence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.double().parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return network


def agree(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def emb(times, width):
    """(T, D), equation 27."""
    rates = [math.exp(-math.log(10000) * k / (width / 2 - 1)) for k in range(width // 2)]
    return torch.tensor([[f(t * w) for f in (math.sin, math.cos) for w in rates] for t in times], dtype=torch.float64)


def conv(weight, x):
    """``irfft_T( sum_i rfft_T(x)[m, n, i] W[i, o, m] )`` of x (T, ..., C), equations 5 to 8."""
    spectrum = torch.fft.rfft(x, dim=0)
    product = torch.zeros_like(spectrum)
    for m in range(weight.shape[2]):
        product[m] = spectrum[m] @ torch.complex(weight[:, :, m, 0], weight[:, :, m, 1])
    return torch.fft.irfft(product, n=len(x), dim=0)


def egnn(layer, x, v, h, edges, attr, shift=None):
    """One EGNN layer at one time point: x, v (N, 3), h (N, H), attr (E, A); new x and what phi_h makes."""
    n = len(x)
    pushes, messages = [[] for _ in range(n)], [[] for _ in range(n)]
    for e, (i, j) in enumerate(edges.T.tolist()):
        d = x[i] - x[j] - (0 if shift is None else shift[e])
        square = torch.ones(1).double() if layer.norm else d.square().sum()[None]
        m = layer.message(cat([square, h[i], h[j], attr[e]]))
        messages[i].append(m)
        pushes[i].append(layer.coord(m)[:, None] * d)
    new, out = [], []
    for i in range(n):
        push = torch.zeros(4 if layer.handed else 1, 3).double()
        received = torch.zeros(h.shape[1]).double()
        if messages[i]:
            push = (sum(pushes[i]) / len(pushes[i])).clamp(-100, 100)
            received = sum(messages[i]) / (len(messages[i]) if layer.reduce == "mean" else 1)
        heard = [h[i], received]
        moved = x[i] + layer.velocity(h[i]) * v[i] + push[0]
        if layer.handed:
            b, d, e = (w / (w.square().sum() + 1e-4).sqrt() for w in push[1:])
            axial = torch.linalg.cross(b, d)
            moved = moved + layer.cross(h[i]) * axial
            heard.append((e @ axial)[None])
        new.append(moved)
        out.append(layer.node(cat(heard)) + (h[i] if layer.residual else 0))
    return stack(new), stack(out)


def egnn_at(layer, x, v, h, edges, attr, shift=None):
    """The same at every time point; attr (E, A) or (T, E, A)."""
    attr = attr.expand(len(x), *attr.shape[-2:])
    found = [egnn(layer, *(y[t] for y in (x, v, h)), edges, attr[t], shift) for t in range(len(x))]
    return tuple(stack(part) for part in zip(*found, strict=True))


def block(net, x, v, h, edges, attr, c, shift=None):
    """EGNN layers with the two convolutions before each of them, or at the end."""

    def convolved(k, x, v, h):
        if net.scalar_conv:
            y = conv(net.scalar_conv[k].weight, h)
            h = h + torch.where(y > 0, y, 0.01 * y)
        if net.vector_conv:
            z = stack([x - c, v], dim=-1)[..., : net.vector_conv[k].weight.shape[0]]
            z = z + conv(net.vector_conv[k].weight, z)
            x, v = z[..., 0] + c, z[..., 1] if z.shape[-1] == 2 else v
        return x, v, h

    for k, layer in enumerate(net.layers):
        if net.placement == "before":
            x, v, h = convolved(k, x, v, h)
        x, h = egnn_at(layer, x, v, h, edges, attr, shift)
    return (x, v, h) if net.placement == "before" else convolved(0, x, v, h)


def embedded(linear, f, times, width):
    return stack([linear.weight @ cat([row, at]) + linear.bias for at in emb(times, width) for row in f]).view(
        len(times), len(f), -1
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"handed": True}, {"norm": True, "flat": True}, {"residual": True, "reduce": "mean"}],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("periodic", [False, True])
def test_a_layer_is_its_formula(options, periodic):
    layer, system = stirred(EGNNLayer(4, 2, **options)), random_system(5, n_frames=2)
    torch.manual_seed(0)
    shift = torch.randn(system.edge_index.shape[1], 3, dtype=torch.float64) if periodic else None
    h = torch.randn(2, 5, 4, dtype=torch.float64)
    given = (system.pos - 5, system.vel, h, system.edge_index, system.edge_attr)
    for found, expected in zip(layer(*given, edge_shift=shift), egnn_at(layer, *given, shift), strict=True):
        agree(found, expected)


@pytest.mark.parametrize("time_conv", ["full", "positions", "scalars", "none"])
@pytest.mark.parametrize("n_frames", [None, 5])
def test_egno_is_its_formula(time_conv, n_frames):
    model = stirred(EGNO(2, 2, 4, 2, time_embedding=6, modes=3, time_conv=time_conv))
    system = random_system(4, n_frames=n_frames)
    times = torch.tensor([0.0, 1.0, 2.5, 3.0, 7.0], dtype=torch.float64)
    x, v = (y.expand(5, -1, -1) for y in (system.pos, system.vel))
    h = embedded(model.embedding, system.h, times.tolist(), 6)
    expected = block(model.block, x, v, h, system.edge_index, system.edge_attr, x.mean((0, 1)))
    for found, right in zip(model(*system[:5], times=times), expected, strict=True):
        agree(found, right)


def pooled(s, values):
    """``S^T values``, each cluster divided by its weight; s (N, K), values (N, C)."""
    return s.T @ values / s.sum(0).clamp(min=1e-5)[:, None]


def clusters(net, vectors, h, edges, attr):
    """S (N, K) of vectors (N, 3, 3) and scalars (N, H)."""
    for layer in net.layers:
        new_vectors, new_h = [], []
        for i in range(len(h)):
            heard, pushes = torch.zeros(h.shape[1]).double(), []
            for (row, j), e in zip(edges.T.tolist(), attr, strict=True):
                if row == i:
                    products = (vectors[j].T @ vectors[i]).flatten()
                    m = layer.message(cat([products / max(products.norm(), 1e-12), h[i], h[j], e]))
                    heard = heard + m
                    pushes.append(vectors[j] @ layer.vector(m).view(3, 3))
            new_vectors.append(vectors[i] + (sum(pushes) / len(pushes) if pushes else 0))
            new_h.append(h[i] + layer.node(cat([h[i], heard])))
        vectors, h = stack(new_vectors), stack(new_h)
    return (net.head[2](net.head[0](h).tanh())).softmax(-1)


def decoder(net, vectors, h):
    """One vector and new scalars of vectors (N, 3, V) and scalars (N, C)."""
    for layer in net.layers:
        news, scalars = [], []
        for own, scalar in zip(vectors, h, strict=True):
            products = (own.T @ own).flatten()
            s = layer.in_scalar(cat([products / max(products.norm(), 1e-12), scalar]))
            news.append(own @ layer.out_vector(s))
            scalars.append(layer.out_scalar(s))
        h = stack(scalars)
        vectors = cat([vectors, stack(news)[..., None]], dim=-1)
    return vectors[..., -1], h


def adjacency(s, edges):
    a = torch.zeros(len(s), len(s)).double()
    for i, j in edges.T.tolist():
        a[i, j] += 1
    return s.T @ a @ s


def cut(s, edges):
    a = adjacency(s, edges)
    return (a / a.norm(dim=1, keepdim=True).clamp(min=1e-12) - torch.eye(len(a)).double()).norm()


def pairs(k):
    return torch.tensor([[a, b] for a in range(k) for b in range(k)]).T


@pytest.mark.parametrize("placement", ["before", "end"])
@pytest.mark.parametrize("assignment", ["shared", "per_time"])
def test_eghno_is_its_formula(placement, assignment):
    model = stirred(
        EGHNO(2, 2, 1, 4, 2, clusters=3, pooling_layers=2, time_embedding=6, placement=placement, assignment=assignment)
    )
    system = random_system(4, n_frames=3)
    edges, local, x0, v0 = system.edge_index, system.local_index, system.pos, system.vel
    h = embedded(model.embedding, system.h, [0, 1, 2], 6)
    c = x0.mean((0, 1))
    x, v, h = block(model.low, x0, v0, model.low_embedding(h), edges, system.edge_attr, c)
    n = x - x0
    vectors = stack([x0 - c, n, v0], dim=-1)  # (T, N, 3, 3)
    if assignment == "shared":
        given = [(vectors.mean(0), h.mean(0))] * 3
    else:
        given = list(zip(vectors, h, strict=True))
    s = [clusters(model.pooling, *one, local, system.local_attr) for one in given]
    big_x, big_v, big_h = (stack([pooled(a, b) for a, b in zip(s, y, strict=True)]) for y in (x0, v0, h))
    attr = stack([adjacency(a, edges).flatten()[:, None] for a in s])
    new, _, new_h = block(model.high, big_x, big_v, model.high_embedding(big_h), pairs(3), attr, c)
    out = model(*system[:5], **system.local)
    for t, one in enumerate(s):
        four = [one @ (new[t] - big_x[t]), x0[t] - one @ big_x[t], v0[t] - one @ big_v[t], n[t]]
        vector, scalars = decoder(model.decoder, stack(four, dim=-1), cat([h[t], one @ new_h[t]], dim=-1))
        agree(out.pos[t], one @ new[t] + vector)
        agree(out.h[t], scalars)
    agree(out.vel, v)
    agree(out.cut_loss, stack([cut(one, local) for one in s]).mean())
    agree(out.assignment, s[0] if assignment == "shared" else stack(s))


def level(net, x, about, h, seen, told):
    """The layers of nodes or clusters of a flow; `seen`: edges, attr (T, E, A), shift, x0, s, unit, unit of length."""
    edges, attr, shift, x0, s, unit, length = seen
    for k, layer in enumerate(net.layers):
        h = told(k, h)
        y = conv(net.scalar_conv[k].weight, h)
        h = h + torch.where(y > 0, y, 0.01 * y)
        z = stack([(x - x0) / unit, *about], dim=-1)  # (T, N, 3, C)
        moved = z + conv(net.vector_conv[k].weight, z)
        normed = net.norm[k](h)
        step = moved[..., 0] - z[..., 0]
        gates = net.gate[k](normed)
        for a in range(z.shape[-1]):
            step = step + gates[..., a, None] * moved[..., a]
        about = [moved[..., a] for a in range(1, z.shape[-1])]
        new, more = egnn_at(layer, x / length, about[0], normed, edges, attr, shift)
        x, h = x + s * unit * (new - x / length + step), h + more
    return x, about[0], h


def edge_scalars(x, x0, edges, attr, shift, unit, any_molecule):
    i, j = edges
    shift = 0 if shift is None else shift
    first, now = x0[i] - x0[j] - shift, x[:, i] - x[:, j] - shift
    length = (first.square().sum(-1) + 1e-4).sqrt()
    if any_molecule:
        on_it = ((now - first) * first).sum(-1) / length / unit
    else:
        on_it = 0.3 * (now * first).sum(-1)
    return cat([attr.expand(len(x), -1, -1), length.expand(len(x), -1)[..., None], on_it[..., None]], dim=-1)


def flow(net, options, system, tau, *, start, mean=None, reference=None, size=1.0, about=None, ended=None, shift=None):
    """A window of one graph, and with clusters the cut loss and S."""
    x, edges, width, n_times = system.pos, system.edge_index, options.time_embedding, len(system.pos)
    any_molecule = options.base == "any"
    length, s, c = 10.0 if any_molecule else 1.0, max(1 - tau, 0.03), start.mean(0)
    v = system.vel
    ahead = (start + v if mean is None else mean) - start
    h = embedded(net.embedding, system.h, range(n_times), width) + net.level(emb([1000 * tau], width))
    if options.canonical:
        waves = cat(
            [0.3 * reference, *(f(w * reference) for w in (0.5, 1.0, 2.0) for f in (torch.sin, torch.cos))], dim=-1
        )
        known = [2 * (x - reference), 2 * (start - reference).expand_as(x), 3 * v, 3 * (x - start)]
        h = h + net.atom(waves) + net.coordinates(cat([*known, *([3 * ahead] if options.informed else [])], dim=-1))
    if any_molecule:
        h = h + net.about(torch.ones(len(start), 5).double() if about is None else about)
    if ended is not None:
        h = h + ended * net.end[0]
        h = cat([h[:-1], h[-1:] + ended * net.end[1]])
    attr = edge_scalars(x, start, edges, system.edge_attr, shift, size, any_molecule)
    shift = None if shift is None else shift / length
    z = [v / size, ((start - c) / length).expand_as(x), *([ahead / size] if options.informed else [])]

    def told(k, h):
        return h + nn_silu(net.pool[k](h.mean(1, keepdim=True))) if options.canonical else h

    new, velocity, h = level(net, x, z, h, (edges, attr, shift, start, s, size, length), told)
    rest = ()
    if options.trunk == "eghno":
        local = system.local_index
        n = (new - x) / s / size
        bond = ((start[local[0]] - start[local[1]]).square().sum(-1, keepdim=True) + 1e-4).sqrt()
        vectors = stack([z[1].mean(0), n.mean(0), z[0].mean(0)], dim=-1)
        one = clusters(net.pooling, vectors, h.mean(0), local, bond)
        big_start, big = pooled(one, start), stack([pooled(one, y) for y in x])
        big_z = [stack([pooled(one, y) for y in channel]) for channel in z]
        big_h = stack([pooled(one, y) for y in h])
        scalar = (adjacency(one, edges) / one.sum(0).clamp(min=1e-5)[:, None]).flatten()[:, None]
        attr = edge_scalars(big, big_start, pairs(one.shape[1]), scalar, None, size, any_molecule)
        seen = (pairs(one.shape[1]), attr, None, big_start, s, size, length)
        big_new, _, big_h = level(net.high, big, big_z, net.high_embedding(big_h), seen, lambda k, h: h)
        four = [one @ (big_new - big) / s / size, (x - one @ big) / length, z[0] - one @ big_z[0], n]
        scalars = cat([h, one @ big_h], dim=-1)
        parts = [decoder(net.decoder, a, b) for a, b in zip(stack(four, dim=-1), scalars, strict=True)]
        vector, more = (stack(part) for part in zip(*parts, strict=True))
        new, h, rest = new + s * size * vector, h + more, (cut(one, local), one)
    if options.canonical:
        new = new + s * net.head(h)
    if options.informed:
        new = new + (tau / ((1 - tau) ** 2 + tau**2) - 1) * (x - start - ahead)
    return (new, velocity, h, *rest)


def nn_silu(x):
    return x * x.sigmoid()


FLOWS = {
    "plain": {},
    "uninformed": {"informed": False},
    "differences": {"canonical": False, "handed": True},
    "ends": {"ends": 0.5},
    "any": {"base": "any"},
    "any, uninformed, ends": {"base": "any", "informed": False, "ends": 0.5, "handed": True},
    "clusters": {"trunk": "eghno"},
    "any, clusters": {"trunk": "eghno", "base": "any"},
}


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_is_its_formula(kind):
    """Of two graphs of different size, level and spread in one batch."""
    options = FlowOptions(hidden=4, layers=2, modes=2, time_embedding=6, clusters=2, decoder_layers=2, **FLOWS[kind])
    net = stirred(flow_network(2, 2, 3, options))
    systems = [random_system(n, seed=n, n_frames=3) for n in (4, 3)]
    both, batch = joined(systems)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tau, size, ended = (torch.tensor(x, dtype=torch.float64) for x in ([0.3, 0.99], [0.5, 2.0], [1.0, 0.0]))
    start, mean, reference, about = normal(7, 3), normal(3, 7, 3), normal(7, 3), normal(7, 5)
    shift = normal(both.edge_index.shape[1], 3)
    given = {"start": start, "mean": mean, "edge_shift": shift}
    given |= {"reference": reference} if options.canonical else {}
    given |= {"size": size, "about": about} if options.base == "any" else {}
    given |= {"ended": ended} if options.ends else {}
    given |= {"local_index": both.local_index} if options.trunk == "eghno" else {}
    out = net(*both[:5], batch=batch, level=tau, **given)
    cuts = []
    for b, system in enumerate(systems):
        mine, edges = batch == b, batch[both.edge_index[0]] == b
        expected = flow(
            net, options, system, float(tau[b]), start=start[mine], mean=mean[:, mine], reference=reference[mine],
            size=float(size[b]) if options.base == "any" else 1.0, about=about[mine],
            ended=ended[b] if options.ends else None, shift=shift[edges],
        )  # fmt: skip
        for found, right in zip(out[:3], expected[:3], strict=True):
            agree(found[:, mine], right)
        if options.trunk == "eghno":
            cuts.append(expected[3])
            agree(out.assignment[mine], expected[4])
    if cuts:
        agree(out.cut_loss, stack(cuts).mean())


@pytest.mark.parametrize("kind", ["plain", "uninformed", "any", "any, clusters"])
def test_what_a_flow_is_not_told_is_what_the_description_says(kind):
    """One graph at tau = 0 from the first of its frames, the base's mean straight flight and its spread 1."""
    options = FlowOptions(hidden=4, layers=2, modes=2, time_embedding=6, clusters=2, decoder_layers=2, **FLOWS[kind])
    net, system = stirred(flow_network(2, 2, 3, options)), random_system(4, n_frames=3)
    reference = system.pos[1] + 0.1
    given = {"reference": reference} if options.canonical else {}
    given |= {"local_index": system.local_index} if options.trunk == "eghno" else {}
    expected = flow(net, options, system, 0.0, start=system.pos[0], reference=reference)
    for found, right in zip(net(*system[:5], **given), expected, strict=True):
        agree(found, right)


@pytest.mark.parametrize("kind", ["egno", "static", "flow"])
def test_convolutions_begin_between_nothing_and_their_scale(kind):
    """1 / H^2 of scalars, 0.1 of vectors; those that would move what stands still begin with nothing."""
    torch.manual_seed(0)
    if kind == "flow":
        options = FlowOptions(hidden=6, layers=2, modes=3, time_embedding=6, trunk="eghno", clusters=2)
        net = flow_network(2, 2, 6, options)
        levels = [net, net.high]
    else:
        levels = [EGNO(2, 2, 6, 2, modes=3, start="static" if kind == "static" else "paper").block]
    for one in levels:
        for conv in one.scalar_conv:
            assert conv.weight.min() >= 0 and 0.9 / 36 < conv.weight.max() < 1 / 36
        for conv in one.vector_conv:
            if kind == "egno":
                assert conv.weight.min() >= 0 and 0.06 < conv.weight.max() < 0.1
            else:
                assert not conv.weight.any()
        assert len(one.scalar_conv) == len(one.vector_conv) == 2


_PLAIN = {"flat": False, "norm": False, "residual": False, "reduce": "sum", "handed": False}
_OWN = {"n_times": 8, "modes": 2, "time_embedding": 32}
#: Networks, what has to be said of them, and all that is so where nothing is said.
DEFAULTS = {
    EGNNLayer: ((5, 2), (), _PLAIN),
    EGNO: ((2, 2), (64, 4), {**_PLAIN, **_OWN}),
    EGHNO: ((2, 2, 1), (64, 4), {**_PLAIN, **_OWN, "clusters": 20, "pooling_layers": 4, "decoder_layers": 2}),
    EGNN: ((2, 2), (64, 4), {"residual": False, "reduce": "sum"}),
    RolledEGNN: (
        (2, 2), (64, 4),
        {"n_times": 8, "bundle": 1, "time_embedding": 0, "first_only": True, "step": 1.0, "speed": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_networks_are_by_default_those_of_the_paper(kind):
    first, sizes, options = DEFAULTS[kind]
    made = []
    for more, given in (((), {}), (sizes, options)):
        torch.manual_seed(0)
        made.append(kind(*first, *more, **given).double())
    one, other = (net.state_dict() for net in made)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    system, local = random_system(4), {}
    h = torch.randn(4, 5, dtype=torch.float64) if kind is EGNNLayer else system.h
    given = (h, system.pos, system.vel, system.edge_index, system.edge_attr)
    if kind is EGNNLayer:
        given = (system.pos[None], system.vel[None], h[None], system.edge_index, system.edge_attr)
    if kind is EGHNO:
        local = system.local
    for a, b in zip(*(net.train()(*given, **local) for net in made), strict=True):
        assert torch.equal(a, b)


def test_widths_of_the_parts_are_those_of_the_tables():
    """Weights counted by hand: H = 5, A = 2, three vectors, K = 3."""
    assert [tuple(w.shape) for w in EGNNLayer(5, 2).parameters() if w.dim() == 2] == [
        (5, 13), (5, 5), (5, 5), (1, 5), (5, 5), (1, 5), (5, 10), (5, 5),
    ]  # fmt: skip
    assert [tuple(w.shape) for w in EGNNLayer(5, 2, flat=True).parameters() if w.dim() == 2] == [
        (20, 13), (5, 20), (20, 5), (1, 20), (20, 5), (1, 20), (20, 10), (5, 20),
    ]  # fmt: skip
    assert [tuple(w.shape) for w in PoolingLayer(5, 2).parameters() if w.dim() == 2] == [
        (5, 21), (5, 5), (5, 5), (9, 5), (5, 10), (5, 5),
    ]  # fmt: skip
    assert [tuple(w.shape) for w in DecoderLayer(4, 7, 5).parameters() if w.dim() == 2] == [
        (5, 23), (5, 5), (5, 5), (4, 5), (5, 5), (5, 5),
    ]  # fmt: skip
    model = EGHNO(2, 2, 1, 5, 2, clusters=3)
    assert [tuple(w.shape) for w in model.pooling.head.parameters()] == [(40, 5), (40,), (3, 40), (3,)]
    assert NodeEmbedding(3, 5, 8).weight.shape == (5, 11) and NodeEmbedding(3, 5, 0).weight.shape == (5, 3)
