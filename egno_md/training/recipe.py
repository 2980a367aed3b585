"""From what a user asks for to a complete recipe: reading, overriding, filling in, writing."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import DataError, UsageError, nearest
from ..forecast.model import Model
from ..models.header import read_header
from ..nn import operators
from ..specs import PRESETS, GraphSpec, ModelSpec, Recipe, TrainSpec, WindowSpec
from .data import FilesOptions, System
from .source import Source, options_type, source_of

SECTIONS: dict[str, type[BaseModel]] = {
    "graph": GraphSpec,
    "window": WindowSpec,
    "model": ModelSpec,
    "training": TrainSpec,
}

#: Short names for what most people set: keywords of :func:`egno_md.training.train_files`, with their place in a recipe
#: and their flag.
SHORT = {
    "select": ("graph.select", "--select"),
    "cutoff": ("graph.cutoff", "--cutoff"),
    "stride": ("window.stride_ps", "--stride"),
    "n_times": ("window.n_times", "--window"),
    "span": ("window.span", "--span"),
    "history": ("window.history", "--history"),
    "sampling": ("window.sampling", "--sampling"),
    "operator": ("model.operator", "--operator"),
    "hidden": ("model.hidden", "--hidden"),
    "layers": ("model.layers", "--layers"),
    "epochs": ("training.max_epochs", "--epochs"),
    "epoch_windows": ("training.epoch_windows", "--epoch-windows"),
    "batch_size": ("training.batch_size", "--batch-size"),
    "lr": ("training.learning_rate", "--lr"),
    "patience": ("training.patience", "--patience"),
    "seed": ("training.seed", "--seed"),
    "every": ("data.every", "--every"),
    "dt": ("data.dt", "--dt"),
    "split": ("data.fractions", "--split"),
    "blocks": ("data.blocks", "--blocks"),
    "preset": ("preset", "--preset"),
    "init": ("init", "--init"),
}
_FLAGS = dict(SHORT.values())


@dataclass(frozen=True)
class Plan:
    """A complete recipe as specs.

    Attributes
    ----------
    graph, window, model : GraphSpec, WindowSpec, ModelSpec or None
        None where a model is fine-tuned, which brings them.
    choose_prior : bool
        Whether the model's prior is the better one on the validation windows.
    """

    graph: GraphSpec | None
    window: WindowSpec | None
    model: ModelSpec | None
    training: TrainSpec
    choose_prior: bool


def read_recipe(path: str | os.PathLike, *, what: str = "recipe") -> Recipe:
    """A recipe from a TOML file; the names of files in it are relative to it.

    A manifest, a file of ``[[system]]`` tables alone, is a recipe of these systems. `what` is for messages.

    Raises
    ------
    DataError
        The file cannot be read.
    UsageError
        A section or key that does not exist; the nearest known one is named.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"cannot read the {what} {path}: {error}") from error
    if set(content) == {"system"}:
        content = {"data": {"systems": content["system"]}}
    for key, value in content.items():
        if key not in Recipe.model_fields:
            cure = ": its tables are [[data.systems]] here" if key == "system" else nearest(key, Recipe.model_fields)
            raise UsageError(f"{path}: there is no section {key}{cure}; known are {', '.join(Recipe.model_fields)}")
        kind, called = (str, "text") if key in ("preset", "init") else (dict, "section")
        if not isinstance(value, kind):
            raise UsageError(f"{path}: {key} must be a {called}, found {value!r}")
    data = dict(content.get("data", {}))
    if data.get("name", "files") == "files" and "systems" in data:
        data["systems"] = _placed(data["systems"], path)
    if "init" in content and os.path.isfile(path.parent / content["init"]):
        content["init"] = str(path.parent / content["init"])
    try:
        recipe = Recipe(**{**content, "data": data})
    except ValidationError as error:
        raise UsageError(f"{path}: {_first(error)}") from error
    check_keys(recipe, f"{path}: ")
    return recipe


def read_manifest(path: str | os.PathLike) -> list[System]:
    """The systems of a recipe or a manifest; file names are relative to it.

    In a manifest each system is a table ``[[system]]`` with ``topology`` and ``trajectories``, and, if wanted,
    ``hold_out`` (runs for the test) and ``name``.

    Raises
    ------
    DataError
        The file cannot be read, or holds no systems.
    """
    systems = read_recipe(path, what="manifest").data.get("systems")
    if not systems:
        raise DataError(f"{path} has no systems: give tables [[system]] with topology and trajectories")
    return list(FilesOptions(systems=tuple(systems)).systems)


def _placed(systems: Any, path: Path) -> list[dict[str, Any]]:
    """Tables of systems with the names of their files as seen from here."""
    if not isinstance(systems, list) or not systems or not all(isinstance(table, dict) for table in systems):
        raise DataError(f"{path}: systems must be tables, [[data.systems]] or, in a manifest, [[system]]")
    placed = []
    for k, table in enumerate(systems):
        known = ("topology", "trajectories", "hold_out", "name")
        if unknown := [key for key in table if key not in known]:
            raise DataError(
                f"system {k + 1} of {path} has no key {unknown[0]}{nearest(unknown[0], known)}; known are "
                f"{', '.join(known)}"
            )
        if not {"topology", "trajectories"} <= set(table):
            raise DataError(f"system {k + 1} of {path} has {sorted(table)}; topology and trajectories are needed")
        table = dict(table)
        for key in ("trajectories", "hold_out"):
            names = table.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"system {k + 1} of {path}: {key} must be a list of file names, found {names!r}")
            table[key] = [str(path.parent / name) for name in names]
        table["name"] = str(table.get("name", Path(table["topology"]).stem))
        placed.append({**table, "topology": str(path.parent / table["topology"])})
    return placed


def known_keys(recipe: Recipe) -> dict[str, list[str]]:
    """The keys of each section, those of the recipe's operator and data set among them."""
    keys = {name: list(spec.model_fields) for name, spec in SECTIONS.items()}
    keys["model"].remove("options")
    keys["model"] += operators.get(_operator(recipe)).options.model_fields
    keys["data"] = ["name", *options_type(recipe.data.get("name", "files")).model_fields]
    return keys


def _operator(recipe: Recipe) -> str:
    """The operator of a recipe, be it that of its preset or of its data set."""
    if "operator" in recipe.model:
        return recipe.model["operator"]
    preset = PRESETS[recipe.preset or "default"][0].operator
    if recipe.data.get("name", "files") == "files":
        return preset
    known = {"name", *options_type(recipe.data["name"]).model_fields}
    data = {key: value for key, value in recipe.data.items() if key in known}
    try:
        source = source_of(recipe.model_copy(update={"data": data}))
    except UsageError:
        return preset  # what is wrong with the options is said where they are checked
    return source.defaults("model", recipe, {"operator": preset}).get("operator", "egno")


def check_keys(recipe: Recipe, where: str = "") -> None:
    """Refuse keys that no section of this recipe has.

    Raises
    ------
    UsageError
        With the nearest known one.
    """
    for section, known in known_keys(recipe).items():
        for key in getattr(recipe, section):
            if key not in known:
                raise UsageError(
                    f"{where}there is no setting {section}.{key}{nearest(key, known)}; known are {', '.join(known)}"
                )


def overridden(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with other values.

    Parameters
    ----------
    recipe : Recipe
    settings : mapping
        Values by their place, ``{"graph.cutoff": 8}``; the name alone will do where one section has it. Text is read as
        TOML where it can be.

    Raises
    ------
    UsageError
        An unknown name, with the nearest known one, or a name that several sections have.
    """
    content = {key: getattr(recipe, key) for key in Recipe.model_fields}
    # The operator and the data set say what other names there are.
    order = sorted(settings, key=lambda key: key not in ("operator", "model.operator", "data.name"))
    for key in order:
        value = settings[key]
        try:
            value = tomllib.loads(f"value = {value}")["value"] if isinstance(value, str) else value
        except tomllib.TOMLDecodeError:
            pass  # text without quotes
        if key in ("preset", "init"):
            content[key] = value
            continue
        section, name = _place(key, known_keys(Recipe(**content)))
        content[section] = {**content[section], name: value}
    try:
        return Recipe(**content)
    except ValidationError as error:
        raise UsageError(_first(error)) from error


def _place(key: str, known: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    section, dot, name = key.partition(".")
    if dot and section not in known:
        raise UsageError(f"there is no section {section}{nearest(section, known)}; known are {', '.join(known)}")
    if dot and name not in known[section]:
        raise UsageError(
            f"there is no setting {key}{nearest(name, known[section])}; known are {', '.join(known[section])}"
        )
    if dot:
        return section, name
    places = [section for section, keys in known.items() if key in keys]
    if len(places) > 1:
        raise UsageError(f"{key} is a setting of {' and '.join(places)}: give {places[0]}.{key} or {places[1]}.{key}")
    if not places:
        every = [name for keys in known.values() for name in keys]
        raise UsageError(f"there is no setting {key}{nearest(key, every)}; known are {', '.join(every)}")
    return places[0], key


def shortly(recipe: Recipe, **short: Any) -> Recipe:
    """A recipe with values by their short names (`SHORT`); what is None stays as it is."""
    given = {name: value for name, value in short.items() if value is not None}
    if unknown := [name for name in given if name not in SHORT]:
        raise UsageError(f"there is no option {unknown[0]}{nearest(unknown[0], SHORT)}; known are {', '.join(SHORT)}")
    if {"stride", "every"} <= set(given):
        raise UsageError("give the stride in ps (--stride) or in frames (--every), not both")
    return overridden(recipe, {SHORT[name][0]: value for name, value in given.items()})


def complete(recipe: Recipe, source: Source) -> Recipe:
    """A recipe with everything written out that it leaves to its preset, its data set or its files.

    Parameters
    ----------
    recipe : Recipe
    source : Source
        Of its data, see :func:`egno_md.training.source.source_of`; asked only for what the recipe leaves open.

    Raises
    ------
    UsageError
        Settings that do not exist or cannot be; DataError where the files do not say what is left open.
    """
    check_keys(recipe)
    data = source.settings()
    preset = PRESETS[recipe.preset or "default"]
    training = source.defaults("training", recipe, _flat(preset[1]))
    name = _operator(recipe)
    if isinstance(recipe.init, Model):
        name = recipe.init.spec.operator
    elif recipe.init is not None:
        name = read_header(recipe.init).content["model"]["operator"]
    training = {**training, **operators.get(name).usual.get("training", {}), **recipe.training}
    training = _flat(_spec(TrainSpec, "training", training))
    if recipe.init is not None:
        own = [f"{section}.{key}" for section in ("graph", "window", "model") for key in getattr(recipe, section)]
        own += ["preset"] if recipe.preset else []
        if own:
            names = [_FLAGS.get(key, key) for key in own]
            raise UsageError(f"a model to fine-tune brings its own {', '.join(own)}: leave out {', '.join(names)}")
        return Recipe(training=training, data=data).model_copy(update={"init": recipe.init})
    window = {**source.defaults("window", recipe, {}), **recipe.window}
    window.setdefault("n_times", 8)
    if window.get("history") in ("state", "trajectory"):
        window["history"] = 1 if window["history"] == "state" else window["n_times"]
    if "stride_ps" not in window:
        _spec(WindowSpec, "window", {**window, "stride_ps": 1.0})  # what is wrong is said before files are opened
        window["stride_ps"] = source.stride_ps()
    window = _spec(WindowSpec, "window", window)
    usual = source.defaults("model", recipe, _flat(preset[0]))
    operator = operators.get(recipe.model.get("operator", usual.get("operator", "egno")))
    # Another operator than that of the preset takes of its options those that it has.
    known = {*ModelSpec.model_fields, *operator.options.model_fields}
    own = operator.usual.get("model", {})
    model = {**{key: value for key, value in usual.items() if key in known}, **own, **recipe.model}
    if (prior := model.get("prior")) == "auto":
        model["prior"] = "static"
    model = _flat(operators.complete(_spec(ModelSpec, "model", model)))
    # With fewer points in time there are fewer modes (section 4.2).
    if "modes" in model:
        model["modes"] = min(model["modes"], window.n_times // 2 + 1)
    if prior == "auto":
        model["prior"] = "auto"
    graph = _spec(GraphSpec, "graph", {**source.defaults("graph", recipe, {}), **recipe.graph})
    return Recipe(graph=graph, window=window, model=model, training=training, data=data)


def planned(recipe: Recipe) -> Plan:
    """A complete recipe as specs."""
    training = _spec(TrainSpec, "training", recipe.training)
    if recipe.init is not None:
        return Plan(None, None, None, training, False)
    auto = recipe.model.get("prior") == "auto"
    model = {**recipe.model, "prior": "static"} if auto else recipe.model
    return Plan(
        _spec(GraphSpec, "graph", recipe.graph),
        _spec(WindowSpec, "window", recipe.window),
        _spec(ModelSpec, "model", model),
        training,
        auto,
    )


def _flat(spec: BaseModel) -> dict[str, Any]:
    """A spec as the section of a recipe: options stand beside the other fields."""
    section = spec.model_dump(mode="json")
    options = section.pop("options", {})
    return {**section, **options}


def _spec(kind: type[BaseModel], section: str, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        raise UsageError(_first(error, section)) from error


def _first(error: ValidationError, section: str = "") -> str:
    wrong = error.errors()[0]
    place = ".".join(map(str, (*([section] if section else []), *wrong["loc"])))
    flag = f" ({_FLAGS[place]})" if place in _FLAGS else ""
    found = "" if isinstance(wrong["input"], dict) else f"; found {wrong['input']!r}"
    return f"{place}{flag}: {wrong['msg']}{found}"


def to_toml(recipe: Recipe) -> str:
    """A recipe as TOML; :func:`read_recipe` gives the same one again."""
    lines = [f"{key} = {_toml(getattr(recipe, key))}" for key in ("preset", "init") if getattr(recipe, key) is not None]
    for section in ("graph", "window", "model", "training", "data"):
        content = json.loads(json.dumps(getattr(recipe, section), default=str))
        if not content:
            continue
        tables = {key: value for key, value in content.items() if _is_tables(value)}
        lines += ["", f"[{section}]", *_lines({key: value for key, value in content.items() if key not in tables})]
        for key, rows in tables.items():
            for row in rows:
                lines += ["", f"[[{section}.{key}]]", *_lines(row)]
    return "\n".join(lines).strip() + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in table.items() if value is not None]


def _key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml(key)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    # Text, whole numbers, true and false are written as in JSON, which lets one character stand that TOML does not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
