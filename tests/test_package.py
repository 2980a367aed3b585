"""The rules of the house: which module may import which, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import egno_md

PACKAGE = Path(egno_md.__file__).parent

#: Layers from top to bottom; a module imports from layers below its own, or, where it says so, from its own.
LAYERS = [
    {"cli", "__main__"},
    {"analysis", "propagator", "training", "evaluation", "report", "benchmarks", "models"},
    {"forecast", "checkpoint", "metrics", "checks", "trajectory"},
    {"graph", "windows", "neighbors", "geometry"},
    {"nn", "config"},
    {"errors", "_version"},
]
#: Within a layer: what is built on what.
WITHIN = {
    ("forecast", "checkpoint"),
    ("windows", "graph"),
    ("graph", "neighbors"),
    ("benchmarks", "training"),
    ("benchmarks", "propagator"),
    ("models", "training"),
    ("models", "evaluation"),
    ("training", "evaluation"),
    ("report", "evaluation"),
    ("__main__", "cli"),
}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it; the names of folders for what lies inside them."""
    found = set()
    inside = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = list(inside)[: len(inside) + 1 - node.level] + (node.module.split(".") if node.module else [])
            elif (node.module or "").split(".")[0] == "egno_md":
                base = node.module.split(".")[1:]
            else:
                continue
            found |= {base[0]} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("egno_md.")}
    return {name for name in found if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}


def test_imports_go_downwards():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        name = relative.parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        assert name in level, f"{name} has no layer"
        for other in imports(path) - {name}:
            if level[other] < level[name] or (level[other] == level[name] and (name, other) not in WITHIN):
                wrong.append(f"{relative} imports {other}")
    assert not wrong


def test_networks_know_neither_mdanalysis_nor_specs():
    for path in (PACKAGE / "nn").glob("*.py"):
        roots = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(node.module.split(".")[0])
        assert not roots & {"MDAnalysis", "pydantic", "torch_geometric", "openmm", "mdtraj"}, path.name


def test_package_import_is_lazy_and_names_resolve():
    code = "import sys, egno_md; print([m for m in ('torch', 'MDAnalysis', 'openmm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in egno_md.__all__:
        assert getattr(egno_md, name) is not None
