"""Networks among the candidates: bundled models that fit a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DataError, EGNOError, ModelError
from ..forecast.forecasters import Forecaster, Known
from ..models import bundled_models
from ..models.header import read_header
from ..molecule.atoms import are_all, matching_atoms
from .engine import ModelEngine
from .material import Material

if TYPE_CHECKING:
    from ..forecast.model import Model

#: Operators that draw futures. The others know the mean alone, whose energy score is its error: where anybody draws,
#: they cannot win, and torch need not be loaded to find that out.
DRAWING = ("flow",)


class Network:
    """A model of the atoms and the stride of a run, loaded when it is needed.

    Parameters
    ----------
    name : str
    material : Material
    """

    def __init__(self, name: str, material: Material) -> None:
        self.name, self.material = name, material
        self._engine: ModelEngine | None = None

    def __call__(self, known: Known) -> Forecaster:
        """The model as a candidate; what is known of the run does not change it.

        Raises
        ------
        DataError
            It does not know these atoms.
        """
        from ..forecast.chain import ModelForecaster

        engine = self.engine
        if max(known.steps) > engine.n_times:
            raise DataError(f"it predicts {engine.n_times} strides at a time, the windows have {max(known.steps)}")
        return ModelForecaster(engine.model, engine.builder)

    @property
    def engine(self) -> ModelEngine:
        if self._engine is None:
            from ..forecast.model import load_model
            from ..graph.builder import GraphBuilder

            model: Model = load_model(self.name)
            subject = self.material.subject
            try:
                self._engine = ModelEngine(model, GraphBuilder(subject.atoms, model.graph), subject)
            except ModelError as error:
                raise DataError(str(error)) from error
        return self._engine


def bundled(material: Material, *, drawing_only: bool) -> dict[str, Network]:
    """The bundled models made for the atoms and the stride of a run, by what their files say of themselves."""
    found = {}
    atoms = material.subject.atoms
    for name in bundled_models():
        content = read_header(name).content
        if drawing_only and content["model"]["operator"] not in DRAWING:
            continue
        if abs(content["window"]["stride_ps"] - material.stride_ps) > 1e-3 * material.stride_ps:
            continue
        try:
            same = are_all(atoms, matching_atoms(atoms.universe, content["graph"]["select"]))
        except EGNOError:
            continue
        if same:
            found[name] = Network(name, material)
    return found
