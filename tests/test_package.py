"""The rules of the house, what importing the package costs, and the samples that come with it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import MDAnalysis as mda
import mdtraj
import numpy as np
import pytest

import egno_md
from benchmarks import simulate
from egno_md.errors import UsageError

STDLIB = sys.stdlib_module_names
PACKAGE = Path(egno_md.__file__).parent

#: Who may import whom: a room and the rooms below it.
BASE = {"errors", "_version", "plugins", "files", "progress"}
NETWORK = BASE | {"specs", "compiled"}
ARRAYS = BASE | {"molecule", "compiled"}
GRAPHS = NETWORK | ARRAYS
FORECAST = GRAPHS | {"nn", "trajectory", "graph", "models"}
EVALUATION = FORECAST | {"forecast"}
MAY_IMPORT = {
    "errors": set(),
    "_version": set(),
    "plugins": {"errors"},
    "files": set(),
    "progress": set(),
    "compiled": set(),
    "specs": BASE,
    "nn": NETWORK,
    "molecule": BASE | {"compiled"},
    "trajectory": ARRAYS,
    "graph": GRAPHS,
    "models": BASE,
    "forecast": FORECAST,
    "datasets": GRAPHS | {"graph", "trajectory"},
    "evaluation": EVALUATION,
    "propagator": EVALUATION | {"hindcast"},
    "looking": EVALUATION | {"evaluation", "hindcast"},
    "training": EVALUATION | {"evaluation", "datasets"},
    "reproduce": EVALUATION | {"evaluation", "datasets", "training"},
    "hindcast": EVALUATION | {"evaluation", "datasets", "training"},
    "analysis": EVALUATION | {"hindcast", "looking"},
    "interpolation": EVALUATION,
    "doctor": EVALUATION | {"analysis"},
    "cli": EVALUATION
    | {"evaluation", "looking", "datasets", "propagator", "hindcast", "analysis", "interpolation", "training"}
    | {"reproduce", "doctor"},
    "__main__": {"cli"},
}
#: Third parties that only some files may know; a folder stands for all in it.
ONLY_IN = {
    "MDAnalysis": [
        "molecule/atoms.py",
        "trajectory",
        "forecast/subject.py",
        "analysis.py",
        "interpolation.py",
        "propagator",
    ],
    "openmm": ["propagator"],
    "lightning": ["training/epochs.py", "training/loop.py"],
    "mdtraj": ["trajectory/mdtraj.py"],
    "torch_geometric": ["graph/graph.py", "nn/systems"],
    "e3nn": ["nn/systems/tensors.py"],
    "torch": ["nn", "graph", "forecast", "training", "evaluation", "propagator", "datasets", "reproduce"],
}
#: Names of third parties that are private (a leading underscore, a module called internal), what they are used for, and
#: the version that they were last tried on. Only where there is no public way; to be looked at with every update.
PRIVATE = {
    "MDAnalysis 2.11.0": {
        "_trajectory": "the trajectory of an AnalysisBase",
        "_frame_index": "and its number",
        "_verbose": "whether an AnalysisBase shows its progress",
        "_prepare": "hook of an AnalysisBase",
        "_single_frame": "hook of an AnalysisBase",
        "_conclude": "hook of an AnalysisBase",
        "_read_next_timestep": "hook of a reader",
        "_ts_kwargs": "whether a user gave dt= to a reader",
        "_topology": "what was parsed, for several trajectories of one topology",
        "_frame": "number of the frame of a reader",
        "_load_offsets": "where an XTC reader looks for an index of frames",
        "_read_offsets": "where it makes one, and would write it beside the file",
        "_xdr": "the decoder of an XTC reader, for its offsets",
        "_kwargs": "what a reader's copy passes on",
    },
    "torch 2.13.0": {
        "_linear_pointwise": "oneDNN's Linear with SiLU; tried out before it is used",
        "_is_mkldnn_bf16_supported": "whether it takes bf16; missing counts as no",
    },
    "OpenMM 8.6.1": {
        "openmm.app.internal.unitcell": "reduced vectors of a box",
        "_out": "the stream of a DCDReporter, for a file that begins at the step of the Simulation and not at 0",
    },
}
#: Public, though they have an underscore: methods of named tuples.
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}


def imported(path: Path) -> tuple[set[str], set[str]]:
    """Rooms of the package and third parties that a file imports, anywhere in it but for type checkers."""
    rooms, others = set(), set()
    inside = path.relative_to(PACKAGE).parts[:-1]
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                base = [*inside[: len(inside) + 1 - node.level], *module]
            elif module[0] == "egno_md":
                base = module[1:]
            else:
                others.add(module[0])
                continue
            rooms |= {base[0]} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for parts in (alias.name.split(".") for alias in node.names):
                (rooms if parts[0] == "egno_md" else others).add(parts[1 if parts[0] == "egno_md" else 0])
    return rooms, others


def files() -> list[tuple[str, Path]]:
    return [(path.relative_to(PACKAGE).as_posix(), path) for path in sorted(PACKAGE.rglob("*.py"))]


def test_rooms_import_only_what_lies_below_them():
    wrong = []
    for name, path in files():
        room = name.split("/")[0].removesuffix(".py")
        if room == "__init__":
            continue
        wrong += [f"{name} imports {other}" for other in imported(path)[0] - {room} - MAY_IMPORT[room]]
    assert not wrong


def test_third_parties_are_known_where_the_table_says():
    wrong = []
    for name, path in files():
        for other in imported(path)[1] & set(ONLY_IN):
            if not any(name == place or name.startswith(f"{place}/") for place in ONLY_IN[other]):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(trees: dict[str, ast.Module]) -> set[str]:
    """Private names that the package itself defines somewhere."""
    own = set()
    for node in itertools.chain.from_iterable(map(ast.walk, trees.values())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            own.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in own if is_private(name)}


def private_attributes(tree: ast.Module, own: set[str]) -> set[str]:
    """Names with an underscore, also as strings of getattr and in imports, that are not the package's own."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
        elif isinstance(node, ast.ImportFrom) and not node.level and not node.module.startswith("egno_md"):
            found |= {alias.name for alias in node.names}
            if any(is_private(part) or part == "internal" for part in node.module.split(".")):
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if any(is_private(p) or p == "internal" for p in a.name.split("."))}
    return {name for name in found if (is_private(name) or "." in name) and name not in own | NAMED_TUPLE}


def inherited_names(name: str, tree: ast.Module) -> set[str]:
    """Private names that a class shares with a base of third parties: overridden, read or replaced."""
    found = set()
    parts = name.removesuffix(".py").removesuffix("/__init__").split("/")
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    if parts == ["__main__"] or not classes:  # a module without one may need what is not installed here
        return found
    module = importlib.import_module(".".join(["egno_md", *parts]).removesuffix(".__init__"))
    for node in classes:
        if (cls := getattr(module, node.name, None)) is None:
            continue
        bases = [b for b in cls.__mro__ if b.__module__.split(".")[0] not in ("egno_md", "builtins", *STDLIB)]
        used = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"}
        used |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        for base in bases:
            known = set(vars(base)) | set(vars(base).get("__annotations__", ()))
            try:
                known |= set(re.findall(r"self\.(_\w+)", inspect.getsource(base)))
            except (OSError, TypeError):  # compiled
                pass
            found |= {name for name in used & known if is_private(name)}
    return found


def test_private_names_of_third_parties_are_listed():
    trees = {name: ast.parse(path.read_text()) for name, path in files()}
    own = own_names(trees)
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        for used in private_attributes(tree, own) | inherited_names(name, tree):
            found.setdefault(used, set()).add(name)
    listed = [name for names in PRIVATE.values() for name in names]
    assert len(listed) == len(set(listed))
    assert not {name: where for name, where in found.items() if name not in listed}, "use a public way, or list them"
    assert not [name for name in listed if name not in found], "no longer used: take them off the list"


def test_no_file_is_too_long_and_no_banner_stands_inside_one():
    for name, path in files():
        lines = path.read_text().splitlines()
        assert len(lines) <= 600, name
        assert not [line for line in lines if re.match(r"\s*# -{3,}", line)], name


def test_no_result_names_a_folder_of_the_machine_that_made_it():
    results = [path for path in (PACKAGE.parent / "docs").glob("p*/**/*.json") if path.is_file()]
    assert len(results) > 100
    folders = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|usr|var|mnt|scratch|Users)/")
    assert [path.name for path in results if folders.search(path.read_text())] == []


def test_package_import_is_lazy_and_names_resolve():
    code = "import sys, egno_md; print([m for m in ('torch', 'MDAnalysis', 'openmm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in egno_md.__all__:
        assert getattr(egno_md, name) is not None


def test_a_forecast_waits_for_nothing_that_it_does_not_need(tmp_path):
    """torch_geometric alone is half of a cold start."""
    topology, trajectory = map(str, egno_md.sample("chignolin"))
    code = f"""
        import sys
        from egno_md.cli import main
        try:
            main(["predict", {topology!r}, {trajectory!r}, "--horizon", "2", "-o", {str(tmp_path / "out.dcd")!r}])
        except SystemExit as done:
            assert not done.code, done.code
        print([m for m in ("torch_geometric", "lightning", "mdtraj") if m in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]") and (tmp_path / "out.dcd").exists()


@pytest.mark.parametrize(
    ("name", "n_atoms", "n_residues", "n_frames", "spacing"),
    [("ubiquitin", 1231, 76, 80, 1.0), ("chignolin", 93, 10, 1000, 1.0), ("chignolin-fine", 93, 10, 1000, 0.1)],
)
def test_samples_open_with_mdanalysis_and_mdtraj(name, n_atoms, n_residues, n_frames, spacing):
    topology, trajectory = map(str, egno_md.sample(name))
    u = mda.Universe(topology, trajectory)
    assert (u.atoms.n_atoms, u.residues.n_residues, u.trajectory.n_frames) == (n_atoms, n_residues, n_frames)
    assert u.dimensions is None and "CRYST1" not in Path(topology).read_text()
    times = [ts.time for ts in u.trajectory]
    np.testing.assert_allclose(times, spacing * np.arange(1, n_frames + 1), rtol=1e-5)
    loaded = mdtraj.load(trajectory, top=topology)
    assert (loaded.n_atoms, loaded.n_residues, loaded.n_frames) == (n_atoms, n_residues, n_frames)
    assert loaded.unitcell_lengths is None and loaded.topology.n_bonds >= n_atoms - 1
    np.testing.assert_allclose(loaded.time, times, rtol=1e-5)
    np.testing.assert_allclose(10 * loaded.xyz[-1], u.trajectory[-1].positions, atol=1e-4)
    bonds = mdtraj.compute_distances(loaded, [(a.index, b.index) for a, b in loaded.topology.bonds])
    assert 0.08 < bonds.min() and bonds.max() < 0.22  # nm


def test_fine_sample_is_the_beginning_of_the_coarse_one():
    coarse, fine = (mda.Universe(*map(str, egno_md.sample(name))) for name in ("chignolin", "chignolin-fine"))
    for k in (0, 50, 99):
        np.testing.assert_array_equal(coarse.trajectory[k].positions, fine.trajectory[10 * k + 9].positions)


def test_unknown_sample_is_an_error_with_the_known_ones():
    with pytest.raises(UsageError, match="'villin'.*ubiquitin, chignolin, chignolin-fine"):
        egno_md.sample("villin")


def test_samples_can_be_made_anew(tmp_path, monkeypatch):
    wanted = simulate.SAMPLES["chignolin"]
    short = dataclasses.replace(wanted, length_ps=0.4, trajectories={"a.xtc": (2, 2), "b.xtc": (1, 4)})
    monkeypatch.setattr(simulate, "SAMPLES", {"chignolin": short})
    monkeypatch.setattr(simulate, "EQUILIBRATION_PS", {4: 0.1})
    runs = tmp_path / "runs"
    (tmp_path / f"{short.structure}.pdb").write_bytes(egno_md.sample("chignolin")[0].read_bytes())
    simulate.simulate(
        tmp_path / f"{short.structure}.pdb", short.run_folder(runs), short.length_ps, short.step_fs, 1, short.frame_ps
    )
    simulate.write_sample("chignolin", runs, tmp_path / "out")
    a, b = (mda.Universe(str(tmp_path / "out/chignolin.pdb"), str(tmp_path / f"out/{n}.xtc")) for n in "ab")
    shipped = mda.Universe(str(egno_md.sample("chignolin")[0]))
    assert list(a.atoms.names) == list(shipped.atoms.names) and list(a.residues.resids) == list(shipped.residues.resids)
    np.testing.assert_allclose([ts.time for ts in a.trajectory], [0.2, 0.4])
    np.testing.assert_allclose([ts.time for ts in b.trajectory], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(a.trajectory[1].positions, b.trajectory[3].positions)
    assert a.dimensions is None
