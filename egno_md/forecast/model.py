"""One safetensors file = weights, specs, provenance and a hash over all of them that is verified on load."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from .._version import __version__
from ..errors import ModelError, OutputError, UsageError, counted
from ..files import write_whole
from ..models.header import FORMAT, FORMAT_VERSION, digest, read_header
from ..molecule.local import LocalGeometry
from ..nn import operators
from ..specs import GraphSpec, ModelSpec, WindowSpec
from .drawn import GaussianProcess
from .forecasters import PathRegression, require_network
from .network import ElasticNetwork

#: What is known of molecules: how it is built from its arrays, and how it gives them.
KNOWLEDGE: dict[str, tuple[Callable[..., Any], Callable[[Any], Mapping[str, np.ndarray]]]] = {
    "geometry": (LocalGeometry, vars),
    "regression": (PathRegression, vars),
    "process": (lambda **arrays: GaussianProcess.of_arrays(arrays), GaussianProcess.arrays),
    "elastic": (lambda **arrays: ElasticNetwork.of_arrays(arrays), ElasticNetwork.arrays),
}


def build_network(graph: GraphSpec, window: WindowSpec, spec: ModelSpec) -> nn.Module:
    """The operator that the three specs describe; its weights come from torch's generator.

    Raises
    ------
    UsageError
        Specs that do not go together, or what :func:`egno_md.nn.operators.options_of` refuses.
    """
    if spec.prior == "regression" and (window.history > 1 or window.velocity != "backward"):
        raise UsageError(
            f"the prior 'regression' goes on from one start frame and the way it came; found a history of "
            f"{window.history} and {window.velocity} velocities: use 'static'"
        )
    operator, options = operators.get(spec.operator), operators.options_of(spec)
    any_molecule = operator.drawing is not None and getattr(options, "base", "own") == "any"
    if operator.drawing is not None:
        every = window.targets == tuple(range(1, window.n_times + 1))
        if spec.prior != "static" or window.velocity != "backward" or not every:
            raise UsageError(
                f"the operator {spec.operator!r} draws windows of every stride that go on from the way the start came; "
                f"found the prior {spec.prior!r}, {window.velocity} velocities and the steps {window.targets}: use "
                "'static', 'backward' and span = n_times"
            )
    elif window.history not in (1, window.n_times):
        raise UsageError(
            f"the operator {spec.operator!r} reads a history of 1 frame or of n_times = {window.n_times}, found "
            f"{window.history}: use one of them, or an operator that draws (flow)"
        )
    if window.stride_range is not None and not any_molecule:
        raise UsageError(
            f"the operator {spec.operator!r} knows one stride, found the range {window.stride_range}: leave out "
            "stride_range, or use the operator flow with base = 'any'"
        )
    return operator.build(graph.n_node_features, graph.n_edge_features, window.n_times, options)


@dataclass
class Model:
    """An operator together with everything that is needed to use it rightly.

    Attributes
    ----------
    network : nn.Module
        The operator of ``spec.operator``; in eval mode after :func:`load_model`.
    graph : GraphSpec
        Selection, edges and features.
    window : WindowSpec
        Stride in ps, T and history.
    spec : ModelSpec
        The operator's own settings, complete.
    provenance : dict
        What it was trained on, with which settings, how good it is, its licence.
    name : str
        Name of a bundled model, or the file's.
    geometry : dict of str to LocalGeometry
        What hardly varies in the molecules that it was trained on, by :attr:`egno_md.GraphBuilder.identity`; a forecast
        of one of them is brought back to it.
    regression : dict of str to PathRegression
        The forecast that the operator corrects, where ``spec.prior`` says so.
    process : dict of str to GaussianProcess
        Where an operator that draws begins with the window.
    elastic : dict of str to ElasticNetwork
        The same for molecules that it was not trained on; one network, named "any".
    """

    network: nn.Module
    graph: GraphSpec
    window: WindowSpec
    spec: ModelSpec
    provenance: dict[str, Any] = field(default_factory=dict)
    name: str = "unnamed"
    geometry: dict[str, LocalGeometry] = field(default_factory=dict)
    regression: dict[str, PathRegression] = field(default_factory=dict)
    process: dict[str, GaussianProcess] = field(default_factory=dict)
    elastic: dict[str, ElasticNetwork] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec = operators.complete(self.spec)

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.network.parameters())

    def at_stride(self, stride_ps: float) -> Model:
        """The same model for frames that far apart; errors are those of :meth:`WindowSpec.at_stride`."""
        return dataclasses.replace(self, window=self.window.at_stride(stride_ps))

    def require(self, identity: str) -> None:
        """Refuse a molecule that the model knows nothing of, where it forecasts those of its training runs alone.

        Parameters
        ----------
        identity : str
            See :attr:`egno_md.GraphBuilder.identity`.

        Raises
        ------
        ModelError
            With what to train instead.
        """
        drawing = operators.get(self.spec.operator).drawing is not None
        if self.spec.prior == "regression" and identity not in self.regression:
            does, known = "corrects a regression of", self.regression
            cure = "train a model on runs of this one, or a general one with --set prior=static"
        elif drawing and identity not in self.process and getattr(operators.options_of(self.spec), "base", "") != "any":
            does, known = "draws futures of", self.process
            cure = "train one on runs of this molecule (egno-md train ... --operator flow)"
        else:
            return
        raise ModelError(
            f"model {self.name!r} {does} the {counted(len(known), 'molecule')} that it was trained on, and this is "
            f"none of them (atoms, names and bonds must agree): {cure}"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that a forecast depends on: specs, weights, what is known of molecules."""
        content = {
            "graph": self.graph.model_dump(),
            "window": self.window.model_dump(),
            "model": self.spec.model_dump(),
        }
        return digest(_entries(self._tensors()), json.dumps(content, sort_keys=True))

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.network.state_dict().items()}
        for name in KNOWLEDGE:
            for identity, known in getattr(self, name).items():
                for k, array in KNOWLEDGE[name][1](known).items():
                    tensors[f"{name}.{identity}.{k}"] = torch.from_numpy(np.require(array, requirements="C"))
        return tensors

    def save(self, path: str | os.PathLike, *, force: bool = False) -> Path:
        """Write the checkpoint.

        Parameters
        ----------
        path : str or path-like
            Target; ``.safetensors`` is the usual ending.
        force : bool
            Replace a file that exists.

        Returns
        -------
        Path
            The file written.

        Raises
        ------
        OutputError
            The file exists and `force` is False, or it cannot be written.
        """
        path = Path(path)
        if path.exists() and not force:
            raise OutputError(f"{path} exists; pass force=True to replace it, or choose another name")
        tensors = self._tensors()
        content = json.dumps(
            {
                "graph": self.graph.model_dump(),
                "window": self.window.model_dump(),
                "model": self.spec.model_dump(),
                "provenance": self.provenance,
            },
            sort_keys=True,
        )
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "egno_md": __version__,
            "content": content,
            "sha256": digest(_entries(tensors), content),
        }
        try:
            write_whole(path, _in_order(save(tensors, metadata)))
        except OSError as error:
            raise OutputError(f"cannot write {path} ({error}); choose a folder that exists and has room") from error
        return path


def _in_order(data: bytes) -> bytes:
    """A safetensors file with sorted keys in its header; otherwise the same model has other bytes each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of eight bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def new_model(graph: GraphSpec, window: WindowSpec, spec: ModelSpec, *, seed: int = 0) -> Model:
    """An untrained model; `seed` fixes its initial weights and leaves torch's own generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(build_network(graph, window, spec).eval(), graph, window, spec)


def _entries(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """What the hash is made of."""
    for name, tensor in tensors.items():
        yield name, str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes()


def load_model(name_or_path: str | os.PathLike | Model | None = None) -> Model:
    """Load a model by its bundled name or from a file.

    Parameters
    ----------
    name_or_path : str, path-like, Model or None
        A name that ``egno-md models`` lists, a checkpoint file, or a Model, which is returned as it is.
        None: the default model (C-alpha atoms of proteins, 1 ps).

    Returns
    -------
    Model
        With the network in eval mode on the CPU.

    Raises
    ------
    ModelError
        No such name or file, or that of a free forecast; a file that is damaged, was not written by egno_md, or comes
        from a newer version.
    """
    if isinstance(name_or_path, Model):
        return name_or_path
    require_network(name_or_path)
    header = read_header(name_or_path)
    path, content = header.path, header.content
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    try:
        graph = GraphSpec(**content["graph"])
        window = WindowSpec(**content["window"])
        spec = ModelSpec(**content["model"])
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced
            network = build_network(graph, window, spec)
        arrays: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in KNOWLEDGE}
        for key in list(tensors):
            first, _, rest = key.partition(".")
            if first in KNOWLEDGE:
                identity, array = rest.split(".")
                arrays[first].setdefault(identity, {})[array] = tensors.pop(key).numpy()
        network.load_state_dict(tensors)
        known = {name: {i: KNOWLEDGE[name][0](**a) for i, a in found.items()} for name, found in arrays.items()}
    except (ValidationError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{path} does not describe a model that egno_md {__version__} can build: {error}") from error
    return Model(network.eval(), graph, window, spec, content["provenance"], header.name, **known)
