"""The restraints that lead beads along a forecast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..errors import ModelError

#: Global parameter of the guide: the strength of the restraints in kJ/mol/nm^2, 0 while they are idle.
GUIDE = "egno_guide_k"


def add_guide(system: openmm.System, beads: Sequence[int]) -> openmm.CustomExternalForce:
    """Add the restraints that lead the beads along a forecast; idle until a jump.

    Harmonic, ``k/2 |x - x0|^2``, periodic where the System is; ``k`` is the global parameter :data:`GUIDE` and ``x0``
    a parameter of each bead. Add it before the Context is made; :class:`HybridPropagator` does it otherwise, at the
    price of initialising the Context again.

    Parameters
    ----------
    system : openmm.System
    beads : sequence of int
        Indices of the restrained particles.

    Returns
    -------
    openmm.CustomExternalForce

    Raises
    ------
    ModelError
        A bead that is not in the System or has no mass (a virtual site, a frozen atom).
    """
    for bead in beads:
        if not 0 <= bead < system.getNumParticles():
            raise ModelError(f"bead {bead} is not in the System, which has {system.getNumParticles()} particles")
        if system.getParticleMass(int(bead)) == 0 * unit.dalton:
            raise ModelError(
                f"particle {bead} has no mass (a virtual site or a frozen atom): restraints cannot lead it; leave it "
                "out of the selection"
            )
    # On GPUs the coordinates may be wrapped behind the scenes, hence the periodic distance.
    if system.usesPeriodicBoundaryConditions():
        distance2 = "periodicdistance(x, y, z, x0, y0, z0)^2"
    else:
        distance2 = "((x - x0)^2 + (y - y0)^2 + (z - z0)^2)"
    guide = openmm.CustomExternalForce(f"0.5 * {GUIDE} * {distance2}")
    guide.setName("EGNOGuide")
    guide.addGlobalParameter(GUIDE, 0.0)
    for name in ("x0", "y0", "z0"):
        guide.addPerParticleParameter(name)
    for bead in beads:
        guide.addParticle(int(bead), [0.0, 0.0, 0.0])
    system.addForce(guide)
    return guide


def find_guide(system: openmm.System, beads: NDArray[np.integer]) -> openmm.CustomExternalForce | None:
    """The guide of these beads, if the System has one.

    Raises
    ------
    ModelError
        It has one for other particles.
    """
    for number, force in enumerate(system.getForces()):
        if isinstance(force, openmm.CustomExternalForce) and any(
            force.getGlobalParameterName(k) == GUIDE for k in range(force.getNumGlobalParameters())
        ):
            guided = [force.getParticleParameters(k)[0] for k in range(force.getNumParticles())]
            if guided != list(beads):
                raise ModelError(
                    f"the System has a guide for other particles ({len(guided)}) than those of the selection "
                    f"({len(beads)}), left by another HybridPropagator or add_guide: make the Simulation anew, or, if "
                    f"nobody uses that guide any more, simulation.system.removeForce({number}) and "
                    "simulation.context.reinitialize(preserveState=True)"
                )
            return force
    return None
