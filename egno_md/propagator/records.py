"""What a jump may do, what it did, and what a run came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, NamedTuple

from ..errors import UsageError

#: What a cost ratio is worth; stands wherever one is printed.
COST_NOTE = (
    "the cost is per ps of the model's clock, not of sampling: plain MD of equal cost sampled better wherever it was "
    "measured, and rates across jumps are wrong (docs/openmm.md)"
)


@dataclass(frozen=True)
class JumpLimits:
    """What a jump may do; beyond it, it is rolled back.

    Attributes
    ----------
    spread : float
        Potential energy and kinetic temperature, averaged over the second half of the relaxation, may differ from
        the mean of the running MD by this many of its standard deviations.
    work : float
        Work of the restraints in kJ/mol per bead.
    rmsd : float
        RMSD in Angstrom of the beads to the end of the forecast when the lead ends: whether they could follow.

    Raises
    ------
    UsageError
        A limit that is no number.
    """

    spread: float = 5.0
    work: float = 10.0
    rmsd: float = 1.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, Real) or value != value:
                raise UsageError(f"{name} of JumpLimits must be a bare number, found {value!r}; inf sets no limit")


class Attempt(NamedTuple):
    """What one try at a jump found.

    Attributes
    ----------
    step : int
        Step count of the Simulation, which a jump leaves as it was.
    sound : bool
        Kept; else all of it was undone.
    reason : str
        Why it was undone.
    frames : int
        Frames of the forecast that were followed.
    found : dict
        Fields of :class:`Jump` that were measured before it ended.
    seconds : dict
        Wall time of forecast, lead and relaxation.
    """

    step: int
    sound: bool
    reason: str
    frames: int
    found: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Jump:
    """One jump, a row of the log.

    Attributes
    ----------
    jump : int
        Number of the jump, from 0.
    step : int
        Step count of the Simulation; unbiased MD steps alone are counted.
    md_ps, represented_ps : float
        Unbiased MD so far, and that plus the time that accepted jumps stand for, this one included.
    accepted : bool
    reason : str
        Why it was rolled back.
    frames : int
        Frames of the forecast that were followed: those before the first one that is not physical.
    forecast_bonds : float
        Largest change in Angstrom of a bond length (of a link of the chain for C-alpha) in the forecast as it came.
    forecast_moved : float
        RMSD in Angstrom between the start and the last frame followed, without superposition.
    rmsd_led, rmsd_relaxed : float
        RMSD in Angstrom of the beads to the last frame followed, at the end of the lead and of the relaxation.
    work : float
        Work of the restraints in kJ/mol.
    energy, energy_mean, energy_sd : float
        Potential energy in kJ/mol after relaxing, and mean and standard deviation of the running MD.
    temperature, temperature_mean, temperature_sd : float
        The same of the kinetic temperature in K.
    constraint_error : float
        Largest relative violation of a constraint after the jump.
    seconds_md, seconds_forecast, seconds_lead, seconds_relax : float
        Wall time; ``seconds_md`` is that of the MD before the jump.
    """

    jump: int
    step: int
    md_ps: float
    represented_ps: float
    accepted: bool
    reason: str
    frames: int
    forecast_bonds: float
    forecast_moved: float
    rmsd_led: float
    rmsd_relaxed: float
    work: float
    energy: float
    energy_mean: float
    energy_sd: float
    temperature: float
    temperature_mean: float
    temperature_sd: float
    constraint_error: float
    seconds_md: float
    seconds_forecast: float
    seconds_lead: float
    seconds_relax: float


@dataclass(frozen=True)
class HybridSummary:
    """What a run came to.

    Attributes
    ----------
    jumps, accepted : int
    rolled_back : dict
        Number of rolled back jumps by reason.
    md_ps : float
        Unbiased MD.
    jump_ps : float
        Time that the accepted jumps stand for, going by the model's stride.
    integrated_ps : float
        Everything that was integrated: MD, leads and relaxations, also of jumps that were rolled back.
    seconds_per_md_ps, seconds_per_jump : float
        Wall time of a ps of unbiased MD, and of one jump with forecast, lead and relaxation.
    cost_ratio : float
        Wall time of the jumps over the wall time of plain MD of the time that they stand for by the model's stride.
        Below 1 that clock goes faster, which is no gain in sampling (:data:`COST_NOTE`). NaN without an accepted jump.
    temperature_md, temperature_relaxed : float
        Mean kinetic temperature in K of the MD and at the end of the relaxations.
    constraint_error : float
        The largest of all accepted jumps.
    """

    jumps: int
    accepted: int
    rolled_back: dict[str, int]
    md_ps: float
    jump_ps: float
    integrated_ps: float
    seconds_per_md_ps: float
    seconds_per_jump: float
    cost_ratio: float
    temperature_md: float
    temperature_relaxed: float
    constraint_error: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no NaN: None where no jump was accepted. What the cost ratio is worth comes with it."""
        values = {key: None if value != value else value for key, value in asdict(self).items()}
        return {**values, "cost_ratio_note": COST_NOTE}
