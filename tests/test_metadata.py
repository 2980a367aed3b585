"""What is said of the project in several files is the same in all of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import egno_md

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What conda-forge calls otherwise.
CONDA = {"torch": "pytorch", "torch-geometric": "pytorch_geometric", "matplotlib": "matplotlib-base"}


def conda(requirement: str) -> str:
    name, bound = re.fullmatch(r"([\w-]+)(\S*)", requirement.split(";")[0].strip()).groups()
    return f"{CONDA.get(name, name.lower())} {bound}"


def test_the_conda_recipe_asks_for_what_pyproject_asks_for():
    recipe = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text())
    run = [f"python {PROJECT['requires-python']}", *map(conda, PROJECT["dependencies"])]
    assert sorted(recipe["requirements"]["run"]) == sorted(run)
    extras = [conda(text) for name in ("train", "plot") for text in PROJECT["optional-dependencies"][name]]
    assert recipe["requirements"]["run_constraints"] == extras
    assert recipe["context"]["version"] == egno_md.__version__
    (entry,) = (f"{name} = {place}" for name, place in PROJECT["scripts"].items())
    assert recipe["build"]["python"]["entry_points"] == [entry]
    assert recipe["about"]["license"] == PROJECT["license"] and recipe["about"]["summary"] == PROJECT["description"]
    assert (ROOT / "packaging/conda" / recipe["source"]["path"]).resolve() == ROOT


def test_the_registry_is_told_what_pyproject_says():
    told = yaml.safe_load((ROOT / "packaging/mdakit/metadata.yaml").read_text())
    needed = {"project_name", "authors", "maintainers", "description", "keywords", "license", "project_home"}
    assert needed | {"documentation_home", "documentation_type"} <= set(told)
    assert (told["project_name"], told["license"]) == (PROJECT["name"], PROJECT["license"])
    assert told["python_requires"] == PROJECT["requires-python"]
    assert f"MDAnalysis{told['mdanalysis_requires']}" in PROJECT["dependencies"]
    assert any(told["development_status"] in text for text in PROJECT["classifiers"])
    assert (ROOT / "AUTHORS").is_file() and (ROOT / "CHANGELOG.md").is_file()


def test_the_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == egno_md.__version__ and citation["license"] == PROJECT["license"]
