"""What a model is, as data: frozen specs that a checkpoint stores. An unknown key is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .errors import UsageError

#: One-hot vocabularies. What is not listed is an error when the graph is built, never a silent zero.
AMINO_ACIDS = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
)  # fmt: skip
NUCLEOTIDES = ("A", "C", "G", "T", "U")
ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I")

NodeFeature = Literal["speed", "element", "residue", "atom_name", "charge", "atomic_number", "height"]
EdgeFeature = Literal[
    "distance", "distance2", "rbf", "hop", "bond", "chain", "charge_product", "bonds_apart", "atomic_numbers"
]


#: The largest whole number, and the largest other one, that arrays can hold.
LARGEST, LARGEST_FLOAT = 2**63 - 1, 3e38


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _storable(self) -> Any:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(f"{name} must be a number of at most 63 bits, found {value}")
            if isinstance(value, float) and LARGEST_FLOAT < abs(value) < float("inf"):
                raise ValueError(f"{name} must be at most {LARGEST_FLOAT:g}, found {value:g}")
        return self


class GraphSpec(Spec):
    """From an AtomGroup to a graph: which atoms, which edges, which features (in the order given).

    Attributes
    ----------
    select : str
        MDAnalysis selection, or one of the names ``"ca"``, ``"backbone"``, ``"heavy"``.
    cutoff : float
        Radius of the graph in Angstrom; every atom within it is a neighbour. Infinity: all pairs are edges.
    hops : int
        Covalent neighbours up to this many bonds are edges whatever their distance (C-alpha: along the chain).
    node_features, edge_features : tuple of str
        Names of the features. Nodes: ``speed`` (Angstrom per stride), ``element``, ``residue``, ``atom_name``
        (one-hot over the vocabularies below) and ``charge`` (in e, from the topology); for the paper's data sets
        ``atomic_number`` (over the largest one of the molecule) and ``height`` (y / 30, which no rotation keeps:
        gravity is seen in motion capture). Edges: ``distance``
        (Angstrom), ``distance2`` (Angstrom squared), ``rbf`` (smooth radial basis), ``hop`` (one-hot over 0 ...
        hops, 0 = not covalent), ``bond`` (1 where bonded), ``chain`` (distance along the chain, scaled and capped),
        ``charge_product`` (q_i q_j in e squared); for the paper's data sets ``bonds_apart`` (hop as one number) and
        ``atomic_numbers`` (those of both ends).
    n_rbf : int
        Size of the radial basis.
    elements, residues, atom_names : tuple of str
        The vocabularies of the one-hot features. Residues default to the 20 amino acids; protonation states and other
        spellings (HSD, CYX, DA5) count as the residue they are; for nucleic acids give ``NUCLEOTIDES``.
    """

    select: str = "ca"
    cutoff: float = Field(10.0, gt=0)
    hops: int = Field(2, ge=0, le=64)
    node_features: tuple[NodeFeature, ...] = ("speed", "residue")
    edge_features: tuple[EdgeFeature, ...] = ("rbf", "hop", "chain", "distance2")
    n_rbf: int = Field(16, ge=2, le=1024)
    elements: tuple[str, ...] = ELEMENTS
    residues: tuple[str, ...] = AMINO_ACIDS
    atom_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _finite_basis(self) -> GraphSpec:
        if "rbf" in self.edge_features and self.cutoff == float("inf"):
            raise ValueError("the edge feature rbf needs a cutoff that is not infinite: take distance or distance2")
        return self

    @property
    def n_node_features(self) -> int:
        """Width of the node features."""
        width = {
            "speed": 1,
            "element": len(self.elements),
            "residue": len(self.residues),
            "atom_name": len(self.atom_names),
            "charge": 1,
            "atomic_number": 1,
            "height": 1,
        }
        return sum(width[name] for name in self.node_features)

    @property
    def n_edge_features(self) -> int:
        """Width of the edge features."""
        width = {"distance": 1, "distance2": 1, "rbf": self.n_rbf, "hop": self.hops + 1, "bond": 1, "chain": 1}
        width |= {"charge_product": 1, "bonds_apart": 1, "atomic_numbers": 2}
        return sum(width[name] for name in self.edge_features)


class WindowSpec(Spec):
    """What one call of the operator sees and predicts.

    Attributes
    ----------
    stride_ps : float
        Time between two frames in ps.
    stride_range : tuple of two float, optional
        Shortest and longest stride in ps that the model was made for; without it, it is valid for `stride_ps` alone.
    n_times : int
        T, the number of frames in a window.
    history : int
        1: state to trajectory (section 4.1). T: trajectory to trajectory (appendix C.1). An operator that draws futures
        reads any number of frames.
    sampling : {"U", "L"}
        Targets spread evenly over the window, or its last T frames. A forecaster wants "U".
    span : int
        Frames from the start to the end of the window; ``n_times`` unless the targets are thinned out.
    velocity : {"backward", "forward", "stored"}
        ``x[t] - x[t-1]``, which a forecaster has, ``x[t+1] - x[t]``, which most of the paper's data sets use, or what a
        run of a data set holds beside its positions, in a unit of its own.
    """

    stride_ps: float = Field(gt=0, le=1e12)  # a second
    stride_range: tuple[float, float] | None = None
    n_times: int = Field(8, ge=1, le=10_000)
    history: int = Field(1, ge=1)
    sampling: Literal["U", "L"] = "U"
    span: int = 0
    velocity: Literal["backward", "forward", "stored"] = "backward"

    @model_validator(mode="before")
    @classmethod
    def _span_from_times(cls, values: dict) -> dict:
        if isinstance(values, dict) and not values.get("span"):
            values = {**values, "span": values.get("n_times", 8)}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> WindowSpec:
        if self.stride_range is not None:
            least, most = self.stride_range
            if not 0 < least <= most:
                raise ValueError(
                    f"stride_range must be two lengths above 0, the shorter one first, found {least}, {most}"
                )
            if not self.covers(self.stride_ps):
                raise ValueError(f"stride_ps must lie within stride_range, found {self.stride_ps} and {least}, {most}")
        if self.span < self.n_times:
            raise ValueError(f"span must be at least n_times = {self.n_times}, found {self.span}")
        return self

    def covers(self, stride_ps: float) -> bool:
        """Whether the model is valid for frames that far apart (to a thousandth, for clocks are rounded)."""
        least, most = self.stride_range or (self.stride_ps, self.stride_ps)
        return least * 0.999 <= stride_ps <= most * 1.001

    def at_stride(self, stride_ps: float) -> WindowSpec:
        """The same for another stride.

        Raises
        ------
        UsageError
            The model is not valid for it.
        """
        if not self.covers(stride_ps):
            least, most = self.stride_range or (self.stride_ps, self.stride_ps)
            known = f"{least:g} ps" if least == most else f"{least:g} to {most:g} ps"
            raise UsageError(
                f"a stride of {stride_ps:g} ps is not what the model was made for, which is {known}: give another "
                "multiple of the run's spacing with every (--every), or take or train a model for this stride"
            )
        return self.model_copy(update={"stride_ps": float(stride_ps)})

    @property
    def targets(self) -> tuple[int, ...]:
        """Frames after the start that are predicted, increasing."""
        if self.sampling == "L":
            return tuple(self.span - self.n_times + i for i in range(1, self.n_times + 1))
        return tuple(self.span * i // self.n_times for i in range(1, self.n_times + 1))


class ModelSpec(Spec):
    """The operator itself, and what stands around it.

    ``ModelSpec(operator="eghno", hidden=8, clusters=4)`` is short for ``ModelSpec(operator="eghno", options={"hidden":
    8, "clusters": 4})``: what is no field of this class is an option of the operator, and ``spec.hidden`` reads it. The
    options are checked and completed by the operator's own spec where a model is made, see
    :func:`egno_md.nn.operators.options_of`.

    Attributes
    ----------
    operator : str
        Name in the register, :mod:`egno_md.nn.operators`.
    options : dict
        The operator's own settings: :class:`egno_md.nn.EGNOOptions`, :class:`egno_md.nn.EGHNOOptions`.
    length_scale : float
        Angstrom per unit of length inside the network: positions and velocities are divided by it.
    prior : {"static", "regression"}
        What the operator gets as the positions at every time, and corrects: the start frame (section 4.3), or the best
        forecast of every atom by itself that is linear in its start, fitted to the training runs
        (:class:`egno_md.forecast.forecasters.PathRegression`). "regression" holds for the molecules of the training
        runs alone, and wants ``history = 1``.
    keep_bonds : bool
        Bring every predicted frame back to a local geometry: of a molecule that the model was trained on to what
        hardly varies in those runs, of others the bonds to their lengths at the start; see
        :mod:`egno_md.molecule.local`.
    """

    operator: str = "egno"
    options: dict[str, Any] = {}
    length_scale: float = Field(1.0, gt=0)
    prior: Literal["static", "regression"] = "static"
    keep_bonds: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fold(cls, values: Any) -> Any:
        """Unknown keys are options; one that is given both ways counts as given by its own name."""
        if not isinstance(values, dict):
            return values
        own = {key: values[key] for key in values if key in cls.model_fields}
        others = {key: values[key] for key in values if key not in cls.model_fields}
        return {**own, "options": {**own.get("options", {}), **others}} if others else own

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("options", {})
        return options[name] if name in options else super().__getattr__(name)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> ModelSpec:
        """A copy with other values, be they fields of this class or options."""
        update = dict(update or {})
        others = {key: update.pop(key) for key in list(update) if key not in type(self).model_fields}
        if others:
            update["options"] = {**update.get("options", self.options), **others}
        return super().model_copy(update=update, deep=deep)


class TrainSpec(Spec):
    """How a model is trained; stored as provenance.

    Attributes
    ----------
    seed : int
        Of the initial weights and of the order of the windows.
    batch_size, learning_rate, weight_decay, max_epochs
        Of Adam.
    patience : int
        How often in a row the validation F-MSE may not be better before the training stops.
    validate_every : int
        Epochs from one look at the validation windows to the next; a state is saved as often.
    gradient_clip : float
        Largest norm of a gradient; 0 leaves it alone.
    ema_decay : float
        Of the exponential moving average of the weights, which is what is kept; 0 keeps the weights themselves.
    schedule : {"cosine", "constant", "halved"}
        Of the learning rate: a warm-up and half a cosine down to zero over all epochs, nothing, or half of it in the
        second half.
    epoch_windows : int
        Windows per epoch, drawn anew in each; 0 for all.
    noise : float
        Standard deviation in Angstrom of what is added to every coordinate of the input frames.
    unroll : int
        A window is learned from as the 1st to as many windows of a chain, drawn anew each time; those before it are
        the model's own, without a gradient through them (Brandstetter et al. 2022, pushforward).
    distill : bool
        Of a model that draws in several steps, which `init` names: learn to draw in one (the option ``direct``).
    pair_weight : float
        Weight of the mean squared error of the distances along the edges (Angstrom squared) in the loss.
    step_weights : {"equal", "static"}
        Every step of the window counts the same (section 4.4), or by the inverse of the static frame's error there, so
        that the first steps, whose errors are small, count as much as the last.
    """

    seed: int = Field(0, ge=0)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0, le=1e6)
    weight_decay: float = Field(1e-8, ge=0)
    max_epochs: int = Field(100, ge=1)
    patience: int = Field(20, ge=1)
    validate_every: int = Field(1, ge=1)
    gradient_clip: float = Field(1.0, ge=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    schedule: Literal["cosine", "constant", "halved"] = "cosine"
    epoch_windows: int = Field(0, ge=0)
    noise: float = Field(0.0, ge=0)
    unroll: int = Field(1, ge=1)
    distill: bool = False
    pair_weight: float = Field(0.0, ge=0)
    step_weights: Literal["equal", "static"] = "equal"


class Recipe(Spec):
    """What a training is made of: five sections of settings, as ``[graph]``, ``[window]`` ... of a TOML file.

    A recipe names what it wants otherwise than usual: what is left out comes from the preset, from the data set or from
    the files, and :func:`egno_md.training.complete` writes all of it out. A complete recipe gives the same training
    again.

    Attributes
    ----------
    graph, window, training : mapping
        Fields of :class:`GraphSpec`, :class:`WindowSpec` and :class:`TrainSpec`. ``history`` of a window may also be
        "state" or "trajectory".
    model : mapping
        Fields of :class:`ModelSpec` and options of its operator. ``prior`` may also be "auto": the better one on the
        validation windows, where the training has one molecule.
    data : mapping
        ``name``, a data set (:func:`egno_md.datasets.names`), and its options. "files", the default, reads
        trajectories; :class:`egno_md.training.FilesOptions` has its options.
    preset : {"default", "paper"}, optional
        Where model and training begin.
    init : str, optional
        A model to fine-tune. It brings graph, window and model.

    Specs are taken as well as mappings: ``Recipe(graph=GraphSpec(cutoff=8), training={"max_epochs": 20})``.
    """

    graph: dict[str, Any] = {}
    window: dict[str, Any] = {}
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    data: dict[str, Any] = {}
    preset: Literal["default", "paper"] | None = None
    init: str | None = None

    @field_validator("graph", "window", "model", "training", "data", mode="before")
    @classmethod
    def _flat(cls, section: Any) -> Any:
        """A spec as a mapping without what is None, which TOML cannot say; options stand beside the other fields."""
        section = section.model_dump(mode="json", exclude_none=True) if isinstance(section, BaseModel) else section
        if isinstance(section, dict) and isinstance(section.get("options"), dict):
            section = {**{key: value for key, value in section.items() if key != "options"}, **section["options"]}
        return section


#: All options of EGNO, written out so that a preset says what it stands for.
_PLAIN = {
    "hidden": 128,
    "layers": 4,
    "modes": 2,
    "time_embedding": 32,
    "time_conv": "full",
    "flat": False,
    "norm": False,
    "residual": False,
    "reduce": "sum",
    "handed": False,
    "start": "paper",
}

#: Settings by name. "default" is made for proteins: lengths of Angstrom, graphs with cutoffs of 10 A, a start at the
#: static frame. "paper" is table 8 of the paper, row Protein, and the plain operator of its section 4.
PRESETS: dict[str, tuple[ModelSpec, TrainSpec]] = {
    "default": (
        ModelSpec(
            options=_PLAIN | {"hidden": 64, "residual": True, "reduce": "mean", "start": "static"},
            length_scale=10.0,
            keep_bonds=True,
        ),
        TrainSpec(batch_size=8, learning_rate=2e-3, max_epochs=50),
    ),
    "paper": (
        ModelSpec(options=_PLAIN),
        TrainSpec(
            batch_size=8,
            learning_rate=5e-5,
            weight_decay=1e-4,
            max_epochs=1000,
            patience=50,
            gradient_clip=0.0,
            ema_decay=0.0,
            schedule="constant",
        ),
    ),
}
