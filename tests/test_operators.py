"""The register of operators, what every one of them must keep, and one from outside the package."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from conftest import Ballistic, make_model, make_universe, require
from toy_operator import OPERATOR as TOY
from toy_operator import Toy

import egno_md
from egno_md.errors import DataError, UsageError
from egno_md.forecast.model import new_model
from egno_md.forecast.operator import apply_operator, graphs
from egno_md.graph import GraphBuilder
from egno_md.nn import operators
from egno_md.nn.testing import check_operator
from egno_md.specs import PRESETS, ModelSpec

#: Sizes for the check, and options that change what is computed.
SMALL = {"hidden": 8, "layers": 2, "time_embedding": 8, "clusters": 3, "pooling_layers": 2, "canonical": False}
SMALL |= {"channels": 4, "heads": 2}
VARIANTS = [
    {},
    {"handed": True, "residual": True, "reduce": "mean"},
    {"time_conv": "positions", "placement": "end", "assignment": "per_time"},
    {"start": "static", "flat": True},
    {"base": "any", "handed": True},
]
#: Rolled on, random weights reach the bound of +-100 for every coordinate of a push, which no rotation keeps.
CALM = {"egnn-tb": {"start": "static"}}


def variants():
    """Of every operator its options in the check, each set of them once."""
    for name in operators.names():
        known = operators.get(name).options.model_fields
        given = [SMALL | variant | CALM.get(name, {}) for variant in VARIANTS]
        sets = [{key: value for key, value in options.items() if key in known} for options in given]
        yield from (pytest.param(name, o, id=f"{name}-{k}") for k, o in enumerate(sets) if o not in sets[:k])


@pytest.mark.parametrize(("name", "options"), variants())
def test_every_registered_operator_keeps_the_contract(name, options):
    require(name)
    check_operator(name, options=options)


class Drifts(Toy):
    """Along x, wherever that points."""

    def forward(self, *args, **how):
        out = super().forward(*args, **how)
        return out._replace(pos=out.pos + torch.tensor([0.1, 0.0, 0.0]))


class Twists(Toy):
    """By a product of vectors that a mirror turns round."""

    def forward(self, h, pos, vel, edge_index, *args, **how):
        out = super().forward(h, pos, vel, edge_index, *args, **how)
        row, col = edge_index
        axial = torch.linalg.cross((out.pos[:, row] - out.pos[:, col]), out.vel[:, row])  # (T, E, 3)
        return out._replace(pos=out.pos.index_add(1, row, axial))


class Mixes(Toy):
    """Drawn to the mean of everything in the batch."""

    def forward(self, h, pos, *args, **how):
        out = super().forward(h, pos, *args, **how)
        return out._replace(pos=out.pos + 0.1 * (out.pos - out.pos.mean(1, keepdim=True)))


class Timeless(Toy):
    """At the time points that it was built for, whatever is asked."""

    def forward(self, *args, times=None, **how):
        return super().forward(*args, times=None if times is None else len(times), **how)


class Rigid(Toy):
    """As many time points as it was built for."""

    def forward(self, *args, times=None, **how):
        times = None if times is None or len(times) != self.n_times else times
        return super().forward(*args, times=times, **how)


class Detached(Toy):
    """A weight that the loss depends on, without a gradient."""

    def __init__(self, *args):
        super().__init__(*args)
        self.lost = torch.nn.Parameter(torch.ones(1))

    def forward(self, *args, **how):
        out = super().forward(*args, **how)
        return out._replace(pos=out.pos + self.lost.detach() * out.vel)


class Halved(Toy):
    """A weight whose gradient is half of what it should be."""

    def forward(self, *args, **how):
        glide = 0.5 * self.glide + 0.5 * self.glide.detach()
        out = super().forward(*args, **how)
        return out._replace(pos=out.pos + glide * out.vel)


class Idle(Toy):
    """A weight that nothing depends on."""

    def __init__(self, *args):
        super().__init__(*args)
        self.unused = torch.nn.Parameter(torch.ones(3))


class Ordered(Toy):
    """The first node is another one."""

    def forward(self, *args, **how):
        out = super().forward(*args, **how)
        return out._replace(pos=torch.cat([out.pos[:, :1] + 0.1 * out.vel[:, :1], out.pos[:, 1:]], dim=1))


class Boxless(Toy):
    """Does not know of images."""

    def forward(self, *args, edge_shift=None, **how):
        return super().forward(*args, **how)


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (Drifts, "rotation: the positions do not follow"),
        (Twists, "reflection: the positions do not follow"),
        (Mixes, "batch: pos of graph 0 of 4 is another one when it is alone"),
        (Timeless, "time: other time points give the same positions"),
        (Rigid, r"time: pos has shape \(4, 7, 3\) for 6 time points"),
        (Detached, "gradient: the loss changes by .* with lost, which has no gradient"),
        (Halved, "gradient: the loss changes by .* with glide, which has a gradient for a change of"),
        (Idle, "gradient: no output depends on unused"),
        (Ordered, "permutation: the order of the nodes matters"),
        (Boxless, "box: `edge_shift` is ignored"),
    ],
)
def test_the_check_sees_what_is_broken(network, line):
    with pytest.raises(AssertionError, match=line) as caught:
        check_operator(dataclasses.replace(TOY, build=network), options={"drag": 0.3})
    # And nothing else: but what drifts does so in a mirror too, and which graph comes first is an order as well.
    heads = {found.removeprefix("- ").split(":")[0] for found in str(caught.value).splitlines()[1:]}
    assert heads - {line.split(":")[0]} == {Drifts: {"reflection"}, Ordered: {"batch"}}.get(network, set())


def test_the_check_wants_what_the_symmetry_says():
    check_operator(TOY)
    check_operator(dataclasses.replace(TOY, build=Twists, symmetry=lambda options: "SE(3)"))
    with pytest.raises(UsageError, match="'toy' also reads vel_history"):
        check_operator(dataclasses.replace(TOY, reads=("vel_history",)))


def test_a_weight_without_influence_can_say_so():
    class Frozen(Idle):
        def __init__(self, *args):
            super().__init__(*args)
            self.unused.requires_grad_(False)

    check_operator(dataclasses.replace(TOY, build=Frozen))


def test_unknown_names_are_errors_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"no operator 'egnos' \(did you mean 'egno'\?\): known are .*egno"):
        operators.get("egnos")
    model = make_model()
    for options, message in (
        ({"hiden": 3}, r"'egno' has no option 'hiden' \(did you mean 'hidden'\?\): it has hidden, layers"),
        ({"clusters": 3}, "'egno' has no option 'clusters'"),
        ({"hidden": 0}, "hidden of the operator 'egno': .*greater than or equal to 1; found 0"),
        ({"time_conv": "some"}, "time_conv of the operator 'egno': .*'full'"),
    ):
        with pytest.raises(UsageError, match=message):
            new_model(model.graph, model.window, ModelSpec(**options))
    with pytest.raises(UsageError, match="already"):
        operators.register(dataclasses.replace(TOY, name="egno"))


def test_a_spec_takes_options_by_their_names_and_reads_them():
    spec = ModelSpec(operator="eghno", hidden=8, clusters=4, length_scale=2.0)
    assert spec == ModelSpec(operator="eghno", options={"hidden": 8, "clusters": 4}, length_scale=2.0)
    assert (spec.hidden, spec.clusters, spec.length_scale) == (8, 4, 2.0)
    assert ModelSpec(options={"hidden": 8}, hidden=16).hidden == 16
    assert ModelSpec(**{**spec.model_dump(), "hidden": 5}).options == {"hidden": 5, "clusters": 4}
    changed = spec.model_copy(update={"hidden": 16, "keep_bonds": True})
    assert changed.options == {"hidden": 16, "clusters": 4} and changed.keep_bonds and spec.hidden == 8
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(AttributeError):
        spec.no_such_option  # noqa: B018
    whole = operators.complete(spec)
    assert whole.cut_weight == 2.0 and whole.hidden == 8 and operators.complete(whole) == whole
    for preset, _ in PRESETS.values():
        assert operators.complete(preset) == preset  # a preset says all that it stands for
    assert PRESETS["paper"][0].hidden == 128


def test_a_model_knows_all_of_its_options():
    model = make_model()
    assert model.spec.options.keys() == operators.get("egno").options.model_fields.keys()
    assert dataclasses.replace(model, spec=ModelSpec()).spec.hidden == 64


@pytest.mark.parametrize("name", ["egno", "eghno", "egnn", "egnn-r"])
def test_networks_and_their_options_have_the_same_defaults(name):
    operator = operators.get(name)
    options = operator.options()
    arguments = inspect.signature(
        type(operator.build(1, 1, 1 if operator.points == "last" else 4, options))
    ).parameters.items()
    own = {
        key.removeprefix("n_"): argument.default
        for key, argument in arguments
        if argument.default is not argument.empty
    }
    shared = own.keys() & type(options).model_fields.keys()
    assert {"hidden", "layers"} <= shared
    assert {key: own[key] for key in shared} == {key: getattr(options, key) for key in shared}


def test_a_graph_without_what_the_operator_reads_is_refused():
    u = make_universe(3)
    model = make_model(operator="eghno", clusters=3)
    frames = np.stack([u.atoms.positions for _ in u.trajectory[:2]])
    graph = graphs(model, [GraphBuilder(u.atoms, model.graph)], [frames])
    with pytest.raises(DataError, match="'eghno' reads local_attr, which these graphs do not have"):
        apply_operator(model, graph._replace(local_attr=None))


@pytest.fixture
def installed(tmp_path):
    """A folder in which another package is installed, for a process of its own."""
    folder = tmp_path / "site"
    info = folder / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("toy_operator.py"), folder)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    entries = {"toy": "toy_operator:OPERATOR", "lost": "no_such_module:OPERATOR", "misnamed": "toy_operator:Toy"}
    lines = ["[egno_md.operators]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def command(folder: Path | None, *arguments: object, code: str | None = None) -> subprocess.CompletedProcess:
    # Not `python -m egno_md` in the folder of the tests: the package may lie anywhere.
    paths = [str(Path(egno_md.__file__).parents[1]), *([] if folder is None else [str(folder)])]
    head = ["-c", code] if code else ["-m", "egno_md", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, *head], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True
    )


def test_an_operator_of_another_package_trains_saves_loads_predicts_and_is_evaluated(tmp_path, installed):
    u = make_universe(60, velocity=0.002)
    top, run, model = tmp_path / "top.pdb", tmp_path / "run.dcd", tmp_path / "m.safetensors"
    u.atoms.write(str(top), bonds="all")
    with mda.Writer(str(run), len(u.atoms)) as writer:
        for _ in u.trajectory:
            writer.write(u.atoms)
    done = command(
        installed, "train", top, run, "-o", model, "--select", "all", "--operator", "toy", "--set", "width=4",
        "--set", "drag=0.01", "--epochs", 2, "--window", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for arguments in (
        ("predict", top, run, "--model", model, "--horizon", 6, "-o", tmp_path / "out.dcd"),
        ("evaluate", top, run, "--model", model),
        ("info", model),
    ):
        done = command(installed, *arguments)
        assert done.returncode == 0, done.stderr
    assert "operator   TOY" in done.stdout
    options = json.loads(command(installed, "info", model, "--json").stdout)["model"]["options"]
    assert options == {"width": 4, "drag": 0.01}
    done = command(None, "predict", top, run, "--model", model, "-o", tmp_path / "none.dcd")
    assert done.returncode == 1 and "no operator 'toy'" in done.stderr and "once it is installed" in done.stderr


def test_a_broken_package_is_named(installed):
    code = """if True:
        from egno_md.errors import UsageError
        from egno_md.nn import operators
        assert {"toy", "lost", "misnamed"} <= set(operators.names())
        for name in ("lost", "misnamed"):
            try:
                operators.get(name)
            except UsageError as error:
                print(error)
    """
    done = command(installed, code=code)
    assert done.returncode == 0, done.stderr
    lost, misnamed = done.stdout.splitlines()
    assert re.search("lost = .*cannot be loaded .ModuleNotFoundError.*mend or uninstall", lost)
    assert re.search("misnamed = .* must be an .*Operator with the name 'misnamed'", misnamed)


@pytest.mark.parametrize("length_scale", [1.0, 10.0])
def test_outputs_are_in_angstrom_whatever_unit_the_network_has(length_scale):
    u = make_universe(3)
    model = make_model(Ballistic(4), length_scale=length_scale)
    frames = np.stack([u.atoms.positions for _ in u.trajectory[:2]]).astype(np.float64)
    out = apply_operator(model, graphs(model, [GraphBuilder(u.atoms, model.graph)], frames[None]))
    step = frames[1] - frames[0]
    np.testing.assert_allclose(out.vel, np.broadcast_to(step, (4, 10, 3)), atol=1e-5)
    np.testing.assert_allclose(out.pos, frames[1] + np.arange(1, 5)[:, None, None] * step, atol=1e-5)
