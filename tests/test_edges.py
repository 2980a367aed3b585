"""The fast edge block against the plain one, in all of its branches, and the bounds it promises."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import warnings
from importlib import metadata
from types import SimpleNamespace

import pytest
import test_eghno
import test_egno
import torch
from packaging.version import Version
from torch import nn

from egno_md.errors import UsageError
from egno_md.forecast.device import in_precision
from egno_md.nn import egnn
from egno_md.nn.edges import block as edges
from egno_md.nn.edges import products, reference
from egno_md.nn.edges import torch as torch_backend

T, N, H, A = 3, 24, 12, 3


def networks(width=H, n_attr=A, act=nn.SiLU, dtype=torch.float64, n_out=1):
    torch.manual_seed(0)
    message = nn.Sequential(nn.Linear(1 + 2 * width + n_attr, width), act(), nn.Linear(width, width), act())
    coord = nn.Sequential(nn.Linear(width, width), act(), nn.Linear(width, n_out))
    return message.to(dtype), coord.to(dtype)


def graph(*, n_edges=100, width=H, n_attr=A, attr_times=None, shift=False, dtype=torch.float64):
    """Inputs with repeated edges, receivers in ascending order, and nodes that receive nothing."""
    torch.manual_seed(1)
    row = torch.randint(0, N - 2, (n_edges,)).sort().values
    attr_shape = (n_edges, n_attr) if attr_times is None else (attr_times, n_edges, n_attr)
    inputs = dict(
        pos=3 * torch.randn(T, N, 3, dtype=dtype),
        h=torch.randn(T, N, width, dtype=dtype),
        edge_index=torch.stack([row, torch.randint(0, N, (n_edges,))]),
        edge_attr=torch.randn(attr_shape, dtype=dtype),
    )
    if shift:
        inputs["edge_shift"] = torch.randn(n_edges, 3, dtype=dtype)
    return {k: v.requires_grad_(v.is_floating_point()) for k, v in inputs.items()}


def run(block, inputs, message, coord, **options):
    """Results, and the gradients of a functional in which every element has a weight of its own."""
    shift, agg = block(**inputs, message=message, coord=coord, **options)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (shift, agg)]
    loss = (shift * weights[0]).sum() + (agg * weights[1]).sum()
    leaves = [x for x in inputs.values() if x.requires_grad] + [*message.parameters(), *coord.parameters()]
    return [shift, agg], torch.autograd.grad(loss, leaves)


def agree(got, expected, rtol):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= rtol * b.norm() + 1e-300


@pytest.fixture(params=["torch", "numba"])
def backend(request, monkeypatch):
    """Who computes the blocks, in float64 as well: nothing hides in the rounding."""
    if request.param == "numba":
        compiled = pytest.importorskip("egno_md.nn.edges.numba", reason="Numba is not installed", exc_type=ImportError)
        monkeypatch.setattr(edges, "_backend", lambda *_: compiled)
    else:
        monkeypatch.setattr(edges, "_backend", lambda *_: torch_backend)
    return request.param


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("shift", [False, True], ids=["open", "periodic"])
@pytest.mark.parametrize("attr_times", [None, T], ids=["static", "per time"])
@pytest.mark.parametrize("max_memory", [None, "auto", 60_000], ids=["default", "auto", "many blocks"])
@pytest.mark.parametrize("n_out", [1, 4])
def test_equals_reference(reduce, shift, attr_times, max_memory, n_out, backend):
    inputs, nets = graph(attr_times=attr_times, shift=shift), networks(n_out=n_out)
    got = run(edges.edge_block, inputs, *nets, reduce=reduce, max_memory=max_memory)
    expected = run(reference.edge_block, inputs, *nets, reduce=reduce)
    assert got[0][0].shape == ((T, N, 3) if n_out == 1 else (T, N, n_out, 3))
    agree(got[0], expected[0], 1e-12)
    agree(got[1], expected[1], 1e-10)


def test_models_take_the_fast_path(monkeypatch):
    monkeypatch.setattr(reference, "edge_block", lambda *args, **options: pytest.fail("this is the reference"))
    for model in (test_egno.small_egno(), test_eghno.small_eghno()):
        layer = next(m for m in model.modules() if isinstance(m, egnn.EGNNLayer))
        width, n_attr = layer.coord[0].in_features, layer.message[0].in_features - 2 * layer.coord[0].in_features - 1
        edges.edge_block(**graph(width=width, n_attr=n_attr), message=layer.message, coord=layer.coord)


@pytest.mark.parametrize("name", [*test_egno.OFFICIAL, *test_eghno.OFFICIAL])
def test_reference_reproduces_the_original(official, name, monkeypatch):
    """The fast path does so in the tests of the operators."""
    calls = []

    def plain(*args, max_memory=None, **options):
        calls.append(len(args))
        return reference.edge_block(*args, **options)

    monkeypatch.setattr(egnn, "edge_block", plain)
    monkeypatch.setattr(egnn, "KEPT", -1)
    if name in test_egno.OFFICIAL:
        test_egno.test_original_vectors(official, name)
    else:
        test_eghno.test_original_vectors(official, name, torch.float32)
    assert calls


@pytest.mark.parametrize("n_attr", [1, 20], ids=["few scalars", "many scalars"])
@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "BLAS"])
def test_float32(onednn, n_attr, backend, monkeypatch):
    """Both libraries of products, against the reference in float64."""
    if onednn and not products._has_onednn():
        pytest.skip("this torch comes without oneDNN")
    monkeypatch.setattr(products, "_has_wide_vectors", lambda: onednn)
    expected = run(reference.edge_block, graph(n_attr=n_attr), *networks(n_attr=n_attr))
    inputs = {k: v.detach().float() if v.requires_grad else v for k, v in graph(n_attr=n_attr).items()}
    inputs = {k: v.requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
    got = run(edges.edge_block, inputs, *networks(n_attr=n_attr, dtype=torch.float32))
    agree([x.double() for x in got[0]], expected[0], 1e-5)
    agree([x.double() for x in got[1]], expected[1], 1e-4)


def test_no_gradient_where_the_displacement_is_bounded(backend):
    inputs, nets = graph(), networks()
    with torch.no_grad():
        nets[1][-1].weight *= 300
    got = run(edges.edge_block, inputs, *nets)
    expected = run(reference.edge_block, inputs, *nets)
    bounded = expected[0][0].abs() == reference.MAX_SHIFT
    assert 0.1 < bounded.double().mean() < 0.9
    agree(got[0], expected[0], 1e-12)
    agree(got[1], expected[1], 1e-10)


def test_order_of_edges_does_not_matter():
    inputs, nets = graph(), networks()
    order = torch.randperm(inputs["edge_index"].shape[1])
    shuffled = inputs | {"edge_index": inputs["edge_index"][:, order], "edge_attr": inputs["edge_attr"][order]}
    agree(edges.edge_block(**shuffled, message=nets[0], coord=nets[1]), run(edges.edge_block, inputs, *nets)[0], 1e-12)


def test_number_of_threads_changes_nothing(backend, monkeypatch):
    """Not even the rounding, so that a seed means the same everywhere; and the setting is left as it was."""
    inputs, nets, sizes = graph(n_edges=400), networks(), []
    monkeypatch.setattr(edges.Edges, "block_size", lambda self, *_: sizes.append(torch.get_num_threads()) or 60)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(edges.edge_block, inputs, *nets)
        torch.set_num_threads(3)
        three = run(edges.edge_block, inputs, *nets)
        with torch.inference_mode():
            forecast = edges.edge_block(**inputs, message=nets[0], coord=nets[1])
        assert torch.get_num_threads() == 3 and sizes == [1, 1, 3, 3, 3]
    finally:
        torch.set_num_threads(before)
    for a, b in zip((*one[0], *one[1], *one[0]), (*three[0], *three[1], *forecast), strict=True):
        assert torch.equal(a, b)


def test_without_edges():
    inputs, nets = graph(n_edges=0), networks()
    (shift, agg), gradients = run(edges.edge_block, inputs, *nets)
    assert shift.shape == (T, N, 3) and agg.shape == (T, N, H)
    assert not any(x.any() for x in (shift, agg, *gradients))


def test_gradients_only_where_asked_for(backend):
    inputs, (message, coord) = graph(shift=True), networks()
    expected = run(reference.edge_block, inputs, message, coord)[1][0]
    for module in (message, coord):
        module.requires_grad_(False)
    only_pos = {k: v if k == "pos" else v.detach() for k, v in inputs.items()}
    shift, agg = edges.edge_block(**only_pos, message=message, coord=coord)
    weights = torch.Generator().manual_seed(2)
    draw = [torch.randn(x.shape, generator=weights, dtype=x.dtype) for x in (shift, agg)]
    ((shift * draw[0]).sum() + (agg * draw[1]).sum()).backward()
    agree([inputs["pos"].grad], [expected], 1e-10)


@pytest.mark.parametrize("options", [dict(norm=True), dict(act=nn.Tanh)], ids=["norm", "tanh"])
def test_options_of_the_original_take_the_reference(options):
    nets, inputs = networks(act=options.pop("act", nn.SiLU)), graph()
    got, expected = (
        f(**inputs, message=nets[0], coord=nets[1], **options) for f in (edges.edge_block, reference.edge_block)
    )
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_compiled_silu_is_as_precise_as_float32():
    """Over the whole range, and with what a diverged forecast brings along."""
    compiled = pytest.importorskip("egno_md.nn.edges.numba", reason="Numba is not installed", exc_type=ImportError)

    def silu(z):
        z = z.clone()[None]  # (1, n)
        compiled._message(z.numpy(), torch.zeros_like(z[0]).numpy(), torch.zeros(0, 0).numpy())
        return z[0]

    z = torch.linspace(-80, 90, 100_001)
    exact = nn.functional.silu(z.double())
    assert ((silu(z) - exact).abs() <= 3e-7 * exact.abs()).all()
    got, expected = (
        silu(torch.tensor([-1e30, 1e30, torch.inf, torch.nan])),
        torch.tensor([0, 1e30, torch.inf, torch.nan]),
    )
    assert torch.allclose(got, expected, rtol=0, atol=1e-7, equal_nan=True)


def test_nan_reaches_the_nodes_that_the_reference_says(backend):
    inputs, nets = {k: v.detach() for k, v in graph().items()}, networks()
    inputs["pos"][1, 5] = torch.nan
    got = edges.edge_block(**inputs, message=nets[0], coord=nets[1])
    expected = reference.edge_block(**inputs, message=nets[0], coord=nets[1])
    for a, b in zip(got, expected, strict=True):
        assert 0 < b.isnan().sum() < b.numel() and torch.equal(a.isnan(), b.isnan())


def test_numba_is_loaded_where_it_pays_and_only_there():
    """Half a second of loading would be most of the time of a small forecast."""
    pytest.importorskip("numba", reason="Numba is not installed")
    code = """
        import sys
        import torch
        from test_edges import graph, networks
        from egno_md.nn.edges import edge_block

        nets = networks(dtype=torch.float32)
        with torch.set_grad_enabled({grad}):
            edge_block(**graph(n_edges={n_edges}, dtype=torch.float32), message=nets[0], coord=nets[1])
        print("numba" in sys.modules)
    """
    loaded = [python(code.format(grad=g, n_edges=n)).strip() for g, n in ((False, 100), (False, 120_000), (True, 100))]
    assert loaded == ["False", "True", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of Linux")
def test_no_room_to_store_the_kernels(tmp_path):
    """The first training on a full disk compiles them all the same."""
    pytest.importorskip("numba", reason="Numba is not installed")
    code = """
        import resource, signal
        import torch
        from test_edges import agree, graph, networks, run
        from egno_md.nn.edges import block as edges, reference

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        inputs, nets = graph(dtype=torch.float32), networks(dtype=torch.float32)
        agree(run(edges.edge_block, inputs, *nets)[1], run(reference.edge_block, inputs, *nets)[1], 1e-4)
    """
    python(code, NUMBA_CACHE_DIR=str(tmp_path))


def test_a_numba_that_does_not_work_is_done_without(monkeypatch):
    def refuse(name):
        raise ImportError("Numba needs NumPy 2.3 or less. Got NumPy 3.0.")

    edges._module.cache_clear()
    monkeypatch.setattr(edges.importlib, "import_module", refuse)
    monkeypatch.setattr(edges.importlib.util, "find_spec", lambda name: name)
    nets, inputs = networks(dtype=torch.float32), graph(dtype=torch.float32)
    try:
        with pytest.warns(UserWarning, match="numba cannot be used .*NumPy 2.3 or less.* 'pip install -U numba'"):
            got = run(edges.edge_block, inputs, *nets)
    finally:
        edges._module.cache_clear()
    agree(got[0], run(reference.edge_block, inputs, *nets)[0], 1e-5)


def test_autocast_lowers_the_products_and_not_the_results():
    nets = networks(dtype=torch.float32)
    inputs = {k: v.detach().float() if v.is_floating_point() else v for k, v in graph().items()}
    exact = edges.edge_block(**inputs, message=nets[0], coord=nets[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = edges.edge_block(**inputs | {"h": inputs["h"].bfloat16()}, message=nets[0], coord=nets[1])
        results, gradients = run(
            edges.edge_block, {k: v.requires_grad_(v.is_floating_point()) for k, v in inputs.items()}, *nets
        )
    for a, b, c in zip(low, exact, results, strict=True):
        assert a.dtype == c.dtype == torch.float32
        assert 0 < (a - b).norm() < 0.03 * b.norm()
    agree(gradients, run(edges.edge_block, inputs, *nets)[1], 1e-5)


def test_layout_in_memory_does_not_matter(backend):
    """One time point of positions that lie among other numbers: nothing needs to be copied to gather them."""
    inputs, nets = {k: v.detach() for k, v in graph(shift=True).items()}, networks()
    inputs |= {k: torch.stack([inputs[k][:1]] * 2, dim=-1)[..., 0] for k in ("pos", "h")}
    got = edges.edge_block(**inputs, message=nets[0], coord=nets[1])
    agree(got, reference.edge_block(**inputs, message=nets[0], coord=nets[1]), 1e-12)
    table = edges.Edges(*(inputs[k] for k in ("pos", "h", "edge_attr", "edge_shift")), edges._weights(*nets),
                        inputs["edge_index"])  # fmt: skip
    assert table.x.is_contiguous() and table.h.is_contiguous()


@pytest.mark.parametrize("node", [-1, N])
@pytest.mark.parametrize("side", [0, 1], ids=["receiver", "sender"])
def test_an_edge_to_nowhere_is_an_error(backend, side, node):
    """And not somebody else's memory."""
    inputs, nets = {k: v.detach() for k, v in graph().items()}, networks()
    inputs["edge_index"][side, 7] = node
    with pytest.raises((UsageError, RuntimeError, IndexError), match="edge_index names|idx|out of (range|bounds)"):
        edges.edge_block(**inputs, message=nets[0], coord=nets[1])


@pytest.mark.parametrize("max_memory", [0, -1, "all", 1.5])
def test_refuses_a_bound_that_is_none(max_memory):
    with pytest.raises(UsageError, match="max_memory"):
        run(edges.edge_block, graph(), *networks(), max_memory=max_memory)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("width", "widest"), [(12, 3 + A + 16), (40, 40)])
def test_blocks_are_as_large_as_their_bound_allows(threads, width, widest):
    """Temporaries of the widest kind, of each thread and one that waits; or what suits the cache."""
    inputs, nets = graph(width=width), networks(width=width)
    table = edges.Edges(inputs["pos"], inputs["h"], inputs["edge_attr"], None, edges._weights(*nets),
                        inputs["edge_index"])  # fmt: skip
    row, before = 8 * widest * T, torch.get_num_threads()  # bytes of an edge
    try:
        torch.set_num_threads(threads)
        together = 5 * (1 if threads == 1 else threads + 1)
        for blocks in (1, 7, 100):
            assert table.block_size(blocks * row * together, 5) == blocks
            assert table.block_size((blocks + 1) * row * together - together, 5) == blocks
        assert table.block_size(1, 5) == 1
        assert table.block_size(None, 5) == 2**19 // row
    finally:
        torch.set_num_threads(before)


def test_out_of_memory_halves_the_block_and_says_so_once(monkeypatch):
    inputs, nets = graph(), networks()
    expected = run(reference.edge_block, inputs, *nets)
    linear, rows = torch_backend.linear, []

    def small_gpu(x, *args, **kwargs):
        rows.append(len(x))
        if len(x) > 40 * T and x.shape[1] == H:
            raise torch.OutOfMemoryError("no room")
        return linear(x, *args, **kwargs)

    monkeypatch.setattr(torch_backend, "linear", small_gpu)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        got = run(edges.edge_block, inputs, *nets)
    assert max(rows) == 100 * T
    assert [str(w.message) for w in caught] == ["out of memory on the GPU: going on with smaller blocks of edges"]
    agree(got[0], expected[0], 1e-12)
    agree(got[1], expected[1], 1e-10)

    def no_gpu(x, *args, **kwargs):
        if len(x) != T * N:  # the nodes fit
            raise torch.OutOfMemoryError("no room")
        return linear(x, *args, **kwargs)

    monkeypatch.setattr(torch_backend, "linear", no_gpu)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="smaller blocks"):
        run(edges.edge_block, inputs, *nets)


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process from Linux")
@pytest.mark.parametrize("megabytes", [8, 40])
def test_memory_bound_holds(megabytes):
    """A training step over edges whose temporaries would need 700 MB if they were kept."""
    grown = python(
        f"""
        import resource, torch
        from test_edges import networks
        from egno_md.nn.edges import edge_block

        def step(n_edges, times=4, nodes=200):
            pos, h = torch.randn(times, nodes, 3), torch.randn(times, nodes, 128, requires_grad=True)
            pairs, attr = torch.randint(0, nodes, (2, n_edges)), torch.randn(n_edges, 2)
            shift, agg = edge_block(pos, h, pairs, attr, *nets, max_memory={megabytes} * 10**6)
            (shift.sum() + agg.sum()).backward()

        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        nets = networks(128, 2, dtype=torch.float32)
        step(2)
        base = peak()
        step(20_000)
        print(peak() - base)
        """
    )
    inputs = 20_000 * (2 * 8 * 2 + 2 * 4) + 8e6  # edge list twice, edge scalars; the tensors as large as the nodes
    assert int(grown) <= megabytes * 10**6 + inputs


def _triton_of(version: str) -> bool:
    return importlib.util.find_spec("triton") is not None and Version(metadata.version("triton")) >= Version(version)


needs_triton = pytest.mark.skipif(not _triton_of("3.3"), reason="Triton 3.3 or newer is not installed")


@needs_triton
def test_a_gpu_runs_triton_where_products_may_be_in_tf32():
    on_gpu, weights = (
        SimpleNamespace(dtype=torch.float32, is_cuda=True),
        [torch.empty(8, 8)] * 6 + [torch.empty(1, 8)] * 2,
    )
    plain, low = (edges._Options(False, None, dtype, True) for dtype in (None, torch.bfloat16))
    assert edges._backend(on_gpu, weights, plain) is torch_backend
    with in_precision("tf32", torch.device("cuda")):
        assert edges._backend(on_gpu, weights, plain).__name__ == "egno_md.nn.edges.triton"
        assert edges._backend(on_gpu, weights, low) is torch_backend


@pytest.mark.skipif(not _triton_of("3.5"), reason="doubles in Triton's interpreter need Triton 3.5")
def test_triton_kernels_equal_reference():
    """Both kernels in Triton's interpreter, in float64: no GPU needed, and nothing hides in the rounding."""
    python(
        """
        from test_edges import agree, graph, networks, run
        from egno_md.nn.edges import block as edges, reference, triton as fused

        calls = []
        launch = fused._launch
        fused._launch = lambda kernel, *args: calls.append(kernel) or launch(kernel, *args)
        edges._backend = lambda *_: fused
        cases = [
            (12, dict(), dict()),
            (40, dict(attr_times=3, shift=True), dict(reduce="mean", max_memory=200_000)),
        ]
        for width, options, how in cases:
            inputs, nets = graph(width=width, **options), networks(width)
            got = run(edges.edge_block, inputs, *nets, **how)
            how.pop("max_memory", None)
            expected = run(reference.edge_block, inputs, *nets, **how)
            agree(got[0], expected[0], 1e-12)
            agree(got[1], expected[1], 1e-10)
        assert {fused._forward, fused._backward} == set(calls) and len(calls) > 4
        """,
        TRITON_INTERPRET="1",
    )


@needs_triton
def test_triton_kernels_take_one_width_up_to_256_and_one_output():
    from egno_md.nn.edges.triton import fits

    def weights(first, second, third, outputs):
        shapes = [(second, first), (third, second), (outputs, third)]
        layers = [(torch.empty(rows, columns), torch.empty(rows)) for rows, columns in shapes]
        return [torch.empty(first, 3), torch.empty(first), *(tensor for layer in layers for tensor in layer)]

    assert [fits(weights(n, n, n, 1)) for n in (12, 256, 257)] == [True, True, False]
    others = [(12, 12, 12, 2), (12, 8, 12, 1), (12, 12, 8, 1), (8, 12, 12, 1)]
    assert not any(fits(weights(*widths)) for widths in others)


@needs_triton
def test_triton_kernels_compile():
    """The interpreter forgives what the compiler does not: both down to PTX, for GPUs that need not be here."""
    python(
        """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from egno_md.nn.edges import triton as fused

        values = dict(WIDTH=64, PADDED=64, ATTR=16, BLOCK=64, CHUNK=32, SHIFT=True)
        for kernel, capability in ((fused._forward, 90), (fused._backward, 80)):
            sizes = ("start", "stop", "n_nodes", "attr_stride", "time_stride", "n_attr")
            integers = dict.fromkeys(sizes, "i32") | dict(pairs="*i64")
            types = {n: "constexpr" if n in values else integers.get(n, "*fp32") for n in kernel.arg_names}
            source = ASTSource(fn=kernel, signature=types, constexprs=values)
            assert "ptx" in triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
        """
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [pytest.param("tf32", marks=needs_triton), "float32"])
def test_gpu_equals_reference(precision):
    with in_precision(precision, torch.device("cuda")):
        _equals_reference(1e-5 if precision == "float32" else 5e-3)


def _equals_reference(tolerance):
    expected = run(reference.edge_block, graph(shift=True), *networks())
    inputs = {k: v.detach().cuda() for k, v in graph(shift=True).items()}
    inputs = {k: v.float().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    nets = [net.cuda() for net in networks(dtype=torch.float32)]
    shift, agg = edges.edge_block(**inputs, message=nets[0], coord=nets[1])
    agree([shift.cpu().double(), agg.cpu().double()], expected[0], tolerance)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (shift, agg)]
    leaves = [x for x in inputs.values() if x.requires_grad] + [p for net in nets for p in net.parameters()]
    gradients = torch.autograd.grad((shift * weights[0]).sum() + (agg * weights[1]).sum(), leaves)
    agree([g.cpu().double() for g in gradients], expected[1], 10 * tolerance)
