"""What both propagators share: units, boxes, the choice of model and beads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
import openmm
from MDAnalysis import AtomGroup
from MDAnalysis.lib.mdamath import triclinic_box
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from egno_md.forecast.chain import check_request
from egno_md.forecast.model import Model, load_model
from egno_md.forecast.subject import choose_atoms

from ..errors import UsageError

#: Steps that are done at once where nobody looks at them: a signal is heard between them.
TOGETHER = 25


def in_parts(steps: int) -> Iterator[int]:
    """A number of steps in parts of :data:`TOGETHER` at most."""
    for done in range(0, steps, TOGETHER):
        yield min(TOGETHER, steps - done)


#: Numbers of an all-atom run by their arguments: the unit, and whether it may be 0.
NUMBERS = {
    "temperature": ("K", False),
    "friction": ("1/ps", True),
    "step_fs": ("fs", False),
    "equilibrate_ps": ("ps", True),
    "lead_ps": ("ps", False),
    "relax_ps": ("ps", False),
    "strength": ("kJ/mol/nm^2", False),
}


def check_numbers(**given: Any) -> None:
    """Refuse :data:`NUMBERS` that mean nothing, before any work.

    Raises
    ------
    UsageError
        A number that is negative, not finite, or 0 where it has to be positive; something else than a bare number.
    """
    for name, value in given.items():
        in_unit, may_be_zero = NUMBERS[name]
        bare = isinstance(value, Real) and not isinstance(value, bool)
        if not bare or not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
            raise UsageError(
                f"{name} (--{name.replace('_', '-')}) must be {'at least 0' if may_be_zero else 'positive'}, a bare "
                f"number in {in_unit}, found {value!r}"
            )


def in_nm(values: ArrayLike) -> NDArray[np.float64]:
    """From Angstrom (or Angstrom/ps) to OpenMM's nm; a plain array, because OpenMM crashes on tensors."""
    return np.asarray(values, np.float64) / 10.0


def in_angstrom(values: Any) -> NDArray[np.float64]:
    """From OpenMM's nm (or nm/ps), a Quantity or bare numbers, to Angstrom."""
    if unit.is_quantity(values):
        values = values.value_in_unit_system(unit.md_unit_system)
    return np.asarray(values, np.float64) * 10.0


def box_of(state: openmm.State) -> NDArray[np.float32]:
    """Lengths in Angstrom and angles in degrees, (6,)."""
    return triclinic_box(*in_angstrom(state.getPeriodicBoxVectors(asNumpy=True)))


def choose_beads(source: Any, model: Model, select: str | None) -> AtomGroup:
    """The atoms to forecast: the model's selection, which `select` can narrow, not leave."""
    return choose_atoms(source, model.graph.select, select, who=f"model {model.name!r}")


def platform_named(name: str) -> openmm.Platform:
    """An OpenMM platform that is there.

    Raises
    ------
    UsageError
        It is not.
    """
    try:
        return openmm.Platform.getPlatformByName(name)
    except (openmm.OpenMMException, TypeError) as error:
        known = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
        raise UsageError(f"OpenMM has no platform {name!r} here; choose one of {', '.join(known)}") from error


def chainable_model(model: Any) -> Model:
    """The model, refused when it cannot be chained: here, and not in the middle of a run."""
    if not isinstance(model, str | os.PathLike | Model | None):
        raise UsageError(f"model must be a name, a file or a Model, found {type(model).__name__} (see egno-md models)")
    model = load_model(model)
    # A window and one frame more is what needs a chain.
    check_request(model, model.window.n_times + 1, 1)
    return model
