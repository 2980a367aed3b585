"""The register of operators: everything that the rest of the package knows of one.

A module in this folder registers its operators when it is imported. Another package names its own in the entry point
group ``egno_md.operators``, an entry's name being the operator's::

    [project.entry-points."egno_md.operators"]
    mine = "my_package.mine:OPERATOR"

Building, training, saving, predicting and evaluating then follow. What an operator must keep is checked by
:func:`egno_md.nn.testing.check_operator`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from .. import plugins
from ..errors import UsageError, nearest
from ..specs import ModelSpec

#: Other packages name their operators in this group.
ENTRY_POINTS = "egno_md.operators"

#: What the outputs turn with: rotations, translations and reflections, or without the last, or nothing of it.
Symmetry = Literal["E(3)", "SE(3)", "none"]


def _no_terms(out: Any, options: Any) -> dict[str, Tensor]:
    return {}


def _mirrored(options: Any) -> Symmetry:
    return "E(3)"


class Drawing(NamedTuple):
    """What an operator brings that draws futures, beside its network; as :mod:`egno_md.nn.flow` does.

    Both are called with the network, a :class:`egno_md.nn.flow.Body`, and the base distribution of its windows.

    Attributes
    ----------
    loss : callable
        ``loss(network, body, base, target (T, N, 3), numbers, options) -> [(Tensor (), count)]``: terms of the training
        loss that add up, and over how many things each is a mean.
    draw : callable
        ``draw(network, body, base, generators, options, end=, max_memory=) -> (T, N, 3)``: one future of each graph, or
        without generators the mean of all of them; where an `end` (N, 3) is given, of those that lead there.
    teach : callable, optional
        ``teach(network, teacher, body, base, numbers, options)``: the loss of a network that is to draw with one call
        what another one draws with several. The operator has the option ``direct`` then, which says that it does.
    """

    loss: Callable[..., list[tuple[Tensor, int]]]
    draw: Callable[..., Tensor]
    teach: Callable[..., list[tuple[Tensor, int]]] | None = None


@dataclass(frozen=True)
class Operator:
    """What the package knows of one operator.

    The module is called as :meth:`egno_md.nn.EGNO.forward` is::

        module(h (N, F), pos, vel, edge_index (2, E), edge_attr (E, A),
               times=, batch=, edge_shift=, max_memory=, **{name: ... for name in reads})

    with `pos` and `vel` (N, 3), or (T, N, 3) for a sequence, in the network's own unit of length. It returns a
    NamedTuple with ``pos`` and ``vel`` (T, N, 3).

    Attributes
    ----------
    name : str
        As ``ModelSpec.operator`` has it.
    build : callable
        ``build(in_node, in_edge, n_times, options) -> nn.Module``: F, A, T where a call does not say, and the options.
    options : type of pydantic model
        Its settings with their defaults; an unknown key is an error. Values must survive JSON.
    reads : tuple of str
        Further fields of :class:`egno_md.graph.Graph` that ``forward`` takes by keyword, as they are (Angstrom).
    loss_terms : callable
        ``loss_terms(out, options) -> {name: Tensor ()}``: what training adds to the error of the positions, each a mean
        over the batch: processes that share one weigh theirs by their graphs.
    symmetry : callable
        ``symmetry(options) -> "E(3)", "SE(3)" or "none"``: whether reflections are among what the outputs turn with, or
        whether they turn with nothing.
    points : {"any", "whole", "built", "last"}
        Which time points a call may ask for: any; 0, 1, ..., T - 1 for any T, for they are made one after the other;
        those T that it was built for; or the end of the window alone, which is one point (``window.n_times = 1`` and
        ``window.span`` the strides to it). A call that asks for others is a UsageError.
    drawing : Drawing, optional
        Of an operator that draws futures: its own training loss and its sampler.
    usual : mapping
        Sections of a recipe that begin otherwise than the preset with this operator: ``{"model": {...}}``.
    """

    name: str
    build: Callable[[int, int, int, Any], nn.Module]
    options: type[BaseModel]
    reads: tuple[str, ...] = ()
    loss_terms: Callable[[Any, Any], Mapping[str, Tensor]] = _no_terms
    symmetry: Callable[[Any], Symmetry] = _mirrored
    points: Literal["any", "whole", "built", "last"] = "any"
    drawing: Drawing | None = None
    usual: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)


_REGISTER: dict[str, Operator] = {}

#: The largest whole number that an operator may be given, the most layers, and the most weights of one matrix a layer.
MOST, MOST_LAYERS, MOST_WEIGHTS = 16384, 1024, 2**26


def register(operator: Operator) -> Operator:
    """Make an operator known by its name.

    Returns
    -------
    Operator
        The same.

    Raises
    ------
    UsageError
        The name is taken by another operator.
    """
    if _REGISTER.get(operator.name, operator) != operator:
        raise UsageError(f"there is an operator {operator.name!r} already: give this one another name")
    _REGISTER[operator.name] = operator
    return operator


@functools.cache
def _import_ours() -> None:
    """Import what lies beside this file, which registers it."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not module.ispkg:
            importlib.import_module(f"{package}.{module.name}")


def names() -> tuple[str, ...]:
    """Names of all operators, those of other packages last; these are not imported for it."""
    _import_ours()
    return tuple(dict.fromkeys([*_REGISTER, *plugins.names(ENTRY_POINTS)]))


def get(name: str) -> Operator:
    """The operator of that name.

    Raises
    ------
    UsageError
        There is none, or the package that brings it cannot be imported.
    """
    if name not in _REGISTER:
        _import_ours()
    if name in _REGISTER:
        return _REGISTER[name]
    for where, operator in plugins.loaded(ENTRY_POINTS, name):
        if not isinstance(operator, Operator) or operator.name != name:
            raise UsageError(f"{where} must be an egno_md.nn.operators.Operator with the name {name!r}")
        return register(operator)
    known = names()
    raise UsageError(
        f"there is no operator {name!r}{nearest(name, known)}: known are {', '.join(known)}; those of another package "
        "are known once it is installed"
    )


def options_of(spec: ModelSpec) -> Any:
    """The options of a spec's operator, complete, as an instance of ``Operator.options``.

    Raises
    ------
    UsageError
        An unknown operator, an option that it does not have, or a value that it refuses.
    """
    operator = get(spec.operator)
    known = operator.options.model_fields
    for key in spec.options:
        if key not in known:
            raise UsageError(
                f"the operator {spec.operator!r} has no option {key!r}{nearest(key, known)}: it has {', '.join(known)}"
            )
    try:
        options = operator.options(**spec.options)
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"])) or "options"
        raise UsageError(
            f"{place} of the operator {spec.operator!r}: {wrong['msg']}; found {wrong['input']!r}"
        ) from error
    _check_size(spec, options)
    return options


def _check_size(spec: ModelSpec, options: Any) -> None:
    """Refuse networks that no machine has room or time to make, before anything is made."""
    numbers = {name: value for name, value in options if isinstance(value, int) and not isinstance(value, bool)}
    for name, value in numbers.items():
        if value > (most := MOST_LAYERS if "layers" in name else MOST):
            raise UsageError(f"{name} of the operator {spec.operator!r} must be at most {most}, found {value}")
    layers = sum(value for name, value in numbers.items() if "layers" in name) or 1
    width = max(numbers.get("hidden", 1), numbers.get("channels", 1))
    if width**2 * layers > MOST_WEIGHTS:
        raise UsageError(
            f"a network of the operator {spec.operator!r} with a width of {width} and {layers} layers takes more than "
            f"{4 * width**2 * layers / 2**30:.1f} GB for its weights alone: take fewer layers, or a width of "
            f"{int((MOST_WEIGHTS / layers) ** 0.5)} at most"
        )


def complete(spec: ModelSpec) -> ModelSpec:
    """The spec with every option of its operator written out; errors are those of :func:`options_of`."""
    return spec.model_copy(update={"options": options_of(spec).model_dump(mode="json")})


def suited(spec: ModelSpec, operator: str) -> ModelSpec:
    """A preset for another operator: of its options those that this one has."""
    known = get(operator).options.model_fields
    options = {key: value for key, value in spec.options.items() if key in known}
    return spec.model_copy(update={"operator": operator, "options": options})
