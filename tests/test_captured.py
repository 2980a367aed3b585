"""The padded network is the network, nothing in it waits for the device, and on a GPU its recording says the same."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_model, make_universe
from nn_systems import joined, random_system
from test_egno import small_egno
from test_forecast import histories
from torch.utils._python_dispatch import TorchDispatchMode

from egno_md.forecast import forecast
from egno_md.forecast import operator as forecast_module
from egno_md.graph.builder import GraphBuilder
from egno_md.nn import captured
from egno_md.nn.captured import Captured, CapturedTraining
from egno_md.nn.flow import ABOUT, Flow, FlowOptions


def arguments(sizes, *, n_frames=None, shift=False, n_edges=None):
    """Graphs of these sizes; of their edges the first `n_edges`."""
    system, batch = joined([random_system(n, seed=n, n_frames=n_frames) for n in sizes])
    kept = slice(0, n_edges)
    options = {"batch": batch if len(sizes) > 1 else None}
    edge_index, edge_attr = system.edge_index[:, kept], system.edge_attr[kept]
    if shift:
        g = torch.Generator().manual_seed(0)
        options["edge_shift"] = torch.randn(len(edge_attr), 3, generator=g, dtype=torch.float64)
    return (system.h, system.pos, system.vel, edge_index, edge_attr), options


def small_flow(**options):
    """A flow with weights of which none is 0."""
    torch.manual_seed(0)
    model = Flow(2, 2, 5, FlowOptions(hidden=8, layers=2, time_embedding=4, **options)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def flow_arguments(sizes, *, base="own", n_edges=None):
    args, kwargs = arguments(sizes, n_frames=5, shift=True, n_edges=n_edges)
    g = torch.Generator().manual_seed(1)
    n, graphs = len(args[0]), len(sizes)
    kwargs["batch"] = torch.arange(graphs).repeat_interleave(torch.tensor(sizes))
    more = {"start": (n, 3), "reference": (n, 3), "mean": (5, n, 3)}
    if base == "any":
        more |= {"about": (n, ABOUT)}
        kwargs["size"] = torch.rand(graphs, generator=g, dtype=torch.float64) + 0.5
    kwargs |= {name: torch.randn(*shape, generator=g, dtype=torch.float64) for name, shape in more.items()}
    kwargs["level"] = torch.rand(graphs, generator=g, dtype=torch.float64)
    return args, kwargs


def same(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture
def runs(monkeypatch):
    """Every padded input that is set up, in the order of the calls."""
    seen, make = [], captured.padded_like
    monkeypatch.setattr(captured, "padded_like", lambda *args: seen.append(make(*args)) or seen[-1])
    return seen


@pytest.mark.parametrize("sizes", [(9,), (6, 9, 9, 1)], ids=["one graph", "batch"])
@pytest.mark.parametrize("shift", [False, True], ids=["open", "periodic"])
@pytest.mark.parametrize("n_frames", [None, 5], ids=["state", "trajectory"])
@pytest.mark.parametrize("options", [{}, {"norm": True}, {"reduce": "mean"}], ids=["plain", "norm", "mean"])
def test_padded_is_unpadded(sizes, shift, n_frames, options, runs):
    model = small_egno(**options)
    args, kwargs = arguments(sizes, n_frames=n_frames, shift=shift)
    with torch.inference_mode():
        same(Captured(model)(*args, **kwargs), model(*args, **kwargs))
    assert runs[0]["edge_index"].shape == (2, 256) and len(runs[0]["h"]) == sum(sizes) + 1


def test_time_points_and_calls_one_after_the_other(runs):
    """Fewer edges after more, other positions and times: nothing of an earlier call is left over."""
    model = small_egno()
    network = Captured(model)
    halves = torch.arange(5).double() / 2
    for n_edges, times in ((None, halves), (7, halves + 1), (0, halves), (None, 2 * halves), (7, None)):
        args, kwargs = arguments((6, 9), shift=True, n_edges=n_edges)
        args = (*args[:2], args[2] * len(args[4]), *args[3:])
        same(network(*args, **kwargs, times=times), model(*args, **kwargs, times=times))
    assert len(runs) == 2  # without time points they are integers: another recording


def test_results_are_the_callers():
    network = Captured(small_egno())
    args, kwargs = arguments((9,))
    first = network(*args, **kwargs).pos
    kept = first.clone()
    network(args[0], args[1] + 1, *args[2:], **kwargs)
    assert torch.equal(first, kept)


def test_recorded_anew_where_it_must_be(runs, monkeypatch):
    monkeypatch.setattr(captured, "_STEP", 8)
    model = small_egno()
    network = Captured(model)
    sizes, expected = [], []
    for graphs, n_edges, new in (
        ((9,), 20, 1),
        ((9,), 24, 0),
        ((9,), 25, 1),
        ((9,), 3, 0),
        ((8,), 3, 1),
        ((4, 4), 3, 1),
        ((9,), 30, 0),  # its recording has been kept
        ((7,), 3, 1),
        ((6,), 3, 1),  # the oldest, of nine nodes, makes room
        ((9,), 3, 1),
    ):
        args, kwargs = arguments(graphs, n_edges=n_edges)
        same(network(*args, **kwargs), model(*args, **kwargs))
        sizes.append(len(runs))
        expected.append((expected[-1] if expected else 0) + new)
    assert sizes == expected
    assert [len(x["edge_attr"]) for x in runs] == [24, 32, 8, 8, 8, 8, 8]


def test_nothing_of_the_spare_node_reaches_another():
    """Not even what is not finite."""
    model = small_egno()
    args, kwargs = arguments((6, 9), shift=True)
    network = Captured(model)
    network(*args, **kwargs)
    (recording,) = network._recordings.values()
    for name in ("h", "pos", "vel", "edge_attr", "edge_shift"):
        x = recording.inputs[name]
        (x[-1:] if x.shape[0] == 16 else x[args[3].shape[1] :]).fill_(torch.nan)
    same([x[:, :15] for x in recording.run()], model(*args, **kwargs))
    assert recording.run().pos[:, 15].isnan().all()


def test_large_graphs_run_as_they_are(runs, monkeypatch):
    monkeypatch.setattr(captured, "_MAX_ROWS", 10)
    model = small_egno()
    args, kwargs = arguments((6, 9))
    same(Captured(model)(*args, **kwargs), model(*args, **kwargs))
    assert not runs


class NoWaiting(TorchDispatchMode):
    """Refuses what a recording refuses: contents of tensors that Python or a shape depends on, copies from the host."""

    FORBIDDEN = (
        "_local_scalar_dense", "bincount", "nonzero", "masked_select", "_unique2", "equal", "scalar_tensor",
        "lift_fresh", "repeat_interleave.Tensor",
    )  # fmt: skip

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        assert not name.startswith(self.FORBIDDEN), name
        if name.startswith("index."):
            assert all(i is None or i.dtype != torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("time_conv", ["full", "none"])
@pytest.mark.parametrize("options", [{}, {"norm": True, "flat": True}], ids=["fast path", "reference"])
def test_nothing_waits_for_the_device(time_conv, options):
    model = small_egno(time_conv=time_conv, **options)
    args, kwargs = arguments((6, 9), shift=True)
    network = Captured(model)
    expected = network(*args, **kwargs)
    (recording,) = network._recordings.values()
    with torch.inference_mode(), NoWaiting():
        found = recording.run()
    same([x[:, :15] for x in found], expected)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        model(*args, **kwargs)


@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("box", [None, [14.0, 14.0, 14.0, 90.0, 90.0, 90.0]], ids=["open", "periodic"])
def test_chain_is_the_same(history, box, runs, monkeypatch):
    u = make_universe(12, velocity=0.05, box=box)
    model = make_model(history=history, start="static")
    for layer in model.network.block.layers:  # enough to change the neighbours, and no molecule breaks
        torch.nn.init.normal_(layer.coord[-1].weight, std=0.02)
    builder, past = GraphBuilder(u.atoms, model.graph), histories(u, [6, 9], history + 1)
    boxes = [box, box]
    plain = forecast(model, builder, past, 26, boxes=boxes, device="cpu")
    assert not runs
    monkeypatch.setattr(forecast_module, "_recordable", lambda model, *_: Captured(model.network))
    np.testing.assert_allclose(forecast(model, builder, past, 26, boxes=boxes, device="cpu"), plain, atol=1e-4)
    assert len(runs) == 1


@pytest.mark.parametrize("base", ["own", "any"])
def test_flow(base, runs):
    model = small_flow(base=base)
    network = Captured(model)
    for n_edges in (None, 7, None):
        args, kwargs = flow_arguments((6, 9), base=base, n_edges=n_edges)
        with torch.inference_mode():
            same(network(*args, n_graphs=2, **kwargs), model(*args, n_graphs=2, **kwargs))
    assert len(runs) == 1 and len(runs[0]["level"]) == 3
    (recording,) = network._recordings.values()
    with torch.inference_mode(), NoWaiting():
        recording.run()


@pytest.mark.parametrize("flow", [False, True], ids=["egno", "flow"])
def test_training(flow, runs):
    """Loss and gradients are those of the network, and what does not come again is not recorded."""
    model = small_flow() if flow else small_egno()
    network = CapturedTraining(model)
    for call in range(5):
        for sizes in ((6, 9), (20 + call,)):
            args, kwargs = flow_arguments(sizes) if flow else arguments(sizes, shift=True)
            args = (*args[:1], args[1] + call, *args[2:])
            gradients = []
            for some in (network, model):
                model.zero_grad()
                out = some(*args, **kwargs)
                (out.pos.square().mean() + 10 * out.pos[-1, 0, 0]).backward()
                gradients.append([out.pos.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
            same(*gradients)
    assert len(runs) == 1 and len(runs[0]["h"]) == 16
    with torch.no_grad():  # validation has recordings of its own
        same(network(*args, **kwargs), model(*args, **kwargs))
    assert len(runs) == 2


def test_a_few_recordings_are_kept_and_the_oldest_goes():
    network = Captured(small_egno())
    network._recordings = dict.fromkeys("abcd")
    assert network._worth_it("c") and list(network._recordings) == ["a", "b", "c", "d"]
    assert network._worth_it("e") and list(network._recordings) == ["b", "c", "d"]
    assert network._worth_it("f") and list(network._recordings) == ["b", "c", "d"]


def test_shapes_of_a_training_are_recorded_when_they_came_three_times():
    network = CapturedTraining(small_egno())
    assert [network._worth_it("a") for _ in range(4)] == [False, False, True, True]
    network._recordings = dict.fromkeys("a")
    assert [network._worth_it("b") for _ in range(3)] == [False, False, True]
    network._recordings = dict.fromkeys("ab")
    assert not any(network._worth_it("c") for _ in range(5)) and network._worth_it("b")  # there is room for two
    # No more than 64 shapes are counted.
    network = CapturedTraining(small_egno())
    for k in range(64):
        network._worth_it(k)
    assert not any(network._worth_it(64) for _ in range(5)) and not network._worth_it(63)
    assert network._worth_it(63)


def test_there_is_room_for_a_tenth_more_edges_in_steps_of_256(monkeypatch, runs):
    model = small_egno()
    for n_edges, room in ((7, 256), (233, 256), (234, 512)):
        args, kwargs = arguments((30,), n_edges=n_edges)
        assert len(args[4]) == n_edges
        network = Captured(model)
        network(*args, **kwargs)
        (recording,) = network._recordings.values()
        assert recording.capacity == room == runs[-1]["edge_index"].shape[1]
    # More rows than a bound, and the network runs as it is.
    monkeypatch.setattr(captured, "_MAX_ROWS", 234 * 5)
    network = Captured(model)
    network(*args, **kwargs)
    assert len(network._recordings) == 1
    monkeypatch.setattr(captured, "_MAX_ROWS", 234 * 5 - 1)
    network = Captured(model)
    same(network(*args, **kwargs), model(*args, **kwargs))
    assert not network._recordings


def test_which_forecasts_are_recorded():
    cuda, cpu, n = torch.device("cuda"), torch.device("cpu"), forecast_module.CAPTURE_FROM
    model = make_model()
    assert forecast_module._recordable(model, cuda, n).network is model.network
    assert forecast_module._recordable(model, cuda, n - 1) is None
    assert forecast_module._recordable(model, cpu, n) is None
    assert forecast_module._recordable(make_model(operator="eghno", clusters=3), cuda, n) is None


class FakeCuda:
    """As much of torch.cuda as a recording needs, with a diary; `fails`: the recording is refused."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.diary = fails, []

    def Stream(self):
        return SimpleNamespace(name="side", wait_stream=lambda other: self.diary.append("side waits"))

    def current_stream(self, device):
        return SimpleNamespace(name="main", wait_stream=lambda other: self.diary.append("main waits"))

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.diary.append("replay"))

    def device(self, device):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def stream(self, stream):
        self.diary.append(f"on {stream.name}")
        yield

    @contextlib.contextmanager
    def graph(self, graph, *, stream, capture_error_mode):
        self.diary.append("record")
        yield
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize("fails", [False, True])
def test_warmed_up_recorded_and_replayed(fails, monkeypatch):
    cuda, values = FakeCuda(fails), iter(range(10))
    monkeypatch.setattr(torch, "cuda", cuda)

    def run():
        cuda.diary.append("run")
        return next(values)

    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted") if fails else contextlib.nullcontext():
        again = captured.recorded(run, torch.device("cpu"))
    before = ["on main", "side waits", "on side", "run", "run", "run", "main waits", "record", "run"]
    assert cuda.diary == before
    assert [again(), again()] == ([4, 5] if fails else [3, 3])
    assert cuda.diary[len(before) :] == 2 * (["run"] if fails else ["replay"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_recording_is_the_network(dtype, recwarn):
    model = small_egno().to(dtype).cuda()
    network = Captured(model)
    for n_edges in (None, 30, 90):
        args, kwargs = arguments((6, 9, 9), shift=True, n_edges=n_edges)
        args = [x.cuda().to(dtype) if x.is_floating_point() else x.cuda() for x in args]
        kwargs = {k: x.cuda().to(dtype) if x.is_floating_point() else x.cuda() for k, x in kwargs.items()}
        with torch.inference_mode():
            same(network(*args, **kwargs), model(*args, **kwargs), 1e-4 if dtype == torch.float32 else 1e-11)
    (recording,) = network._recordings.values()
    assert recording.run.__name__ == "replay" and not [w for w in recwarn if "CUDA graph" in str(w.message)]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_chain_on_a_gpu_is_the_same(precision, monkeypatch):
    u = make_universe(12, velocity=0.3)
    model = make_model()
    builder, past = GraphBuilder(u.atoms, model.graph), histories(u, [6, 9])
    options = {"device": "cuda", "precision": precision}
    assert forecast_module._recordable(model, torch.device("cuda"), 4 * forecast_module.CAPTURE_FROM) is not None
    found = forecast(model, builder, past, 4 * forecast_module.CAPTURE_FROM, **options)
    monkeypatch.setattr(forecast_module, "_recordable", lambda *_: None)
    expected = forecast(model, builder, past, 4 * forecast_module.CAPTURE_FROM, **options)
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("flow", [False, True], ids=["egno", "flow"])
def test_training_on_a_gpu_is_the_same(flow, recwarn):
    model = (small_flow() if flow else small_egno()).cuda()
    network = CapturedTraining(model)
    for call in range(6):
        args, kwargs = flow_arguments((6, 9)) if flow else arguments((6, 9), shift=True)
        args = [x.cuda() for x in (*args[:1], args[1] + call, *args[2:])]
        kwargs = {name: x.cuda() for name, x in kwargs.items()}
        found = []
        for some in (network, model):
            model.zero_grad()
            out = some(*args, **kwargs)
            out.pos.square().mean().backward()
            found.append(
                [out.pos.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
            )
        same(*found, 1e-10)
    assert len(network._recordings) == 1
    assert not [text for w in recwarn if "could not be recorded" in (text := str(w.message))]
