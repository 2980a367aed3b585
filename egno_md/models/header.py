"""What a model file says of itself, and whether it is whole; read without torch, so that looking at models is instant.

A safetensors file is the length of its header (8 bytes, little endian), the header (JSON: type, shape and place of
every tensor, and strings of one's own) and the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .._version import __version__
from ..errors import ModelError, UsageError, nearest
from . import DEFAULT_MODEL, bundled_models

FORMAT = "egno_md"

#: 2: what is known of molecules beside the weights. 3: the operator's options by themselves. 4: ranges of strides, and
#: the base of an operator that draws. Files of older formats go through UPGRADES, one version after the other.
FORMAT_VERSION = 4

#: What is known of molecules beside the weights: fields of Model, stored as ``<field>.<identity>.<array>``.
KNOWLEDGE = ("geometry", "regression", "process", "elastic")

#: Types of safetensors: torch's name, which the hash is made with, and bytes.
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


class Header(NamedTuple):
    """A model file that was verified.

    Attributes
    ----------
    name : str
        Of the bundled model, or of the file without its suffix.
    path : Path
    version : int
        Of the file's format.
    content : dict
        ``graph``, ``window`` and ``model`` (fields of the specs) and ``provenance``, as the newest format has them.
    n_parameters : int
        Numbers in the weights.
    known : dict of str to int
        Molecules that something is known of, by field of Model.
    """

    name: str
    path: Path
    version: int
    content: dict[str, Any]
    n_parameters: int
    known: dict[str, int]


def find_model(name_or_path: str | os.PathLike | None = None) -> tuple[str, Path]:
    """Name and file of a bundled model (by default of the default one) or of a checkpoint.

    Raises
    ------
    ModelError
        Neither of them.
    UsageError
        Neither a name nor a path.
    """
    if name_or_path is not None and not isinstance(name_or_path, (str, os.PathLike)):
        raise UsageError(f"a model is a name, a file or a loaded Model, found {type(name_or_path).__name__}")
    bundled = bundled_models()
    name = DEFAULT_MODEL if name_or_path is None else os.fspath(name_or_path)
    path = bundled.get(name, Path(name))
    if not os.path.isfile(path):
        raise ModelError(
            f"no model {name!r}{like_model(name)}: neither a file nor a bundled model; bundled are {', '.join(bundled)}"
        )
    return (name if name in bundled else path.stem), path


def like_model(name: str, others: Iterable[str] = ()) -> str:
    """What a message about an unknown model adds: the one most like it, bundled, a file beside it, or of `others`."""
    folder = Path(name).parent
    beside = [os.path.join(os.path.dirname(name), file.name) for file in folder.glob("*.safetensors")]
    return nearest(name, [*bundled_models(), *beside, *others])


def read_header(name_or_path: str | os.PathLike | None = None) -> Header:
    """Read what a model says of itself, and verify the hash over all of the file.

    Parameters
    ----------
    name_or_path : str, path-like or None
        As in :func:`egno_md.load_model`.

    Raises
    ------
    ModelError
        No such name or file; a file that is damaged, was not written by egno_md, or comes from a newer version.
    """
    name, path = find_model(name_or_path)
    try:
        data = path.read_bytes()
        metadata, tensors = _parsed(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is not a readable safetensors file ({error}); it is damaged or no model: copy it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{path} holds tensors but was not written by egno_md (format {metadata.get('format')!r}); "
            "weights of the original code are read by egno_md.nn.from_official"
        )
    written = metadata.get("format_version", "")
    if not written.isdecimal() or int(written) < 1:
        raise ModelError(f"{path} has format version {written!r}, which never was one: it was changed or damaged")
    version = int(written)
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {version}, this egno_md {__version__} reads up to {FORMAT_VERSION}: "
            "pip install --upgrade egno_md"
        )
    content = metadata.get("content", "")
    if digest(tensors, content) != metadata.get("sha256"):
        raise ModelError(f"{path} does not match its own checksum: it was changed or damaged; copy it again")
    weights = [shape for key, _, shape, _ in tensors if key.partition(".")[0] not in KNOWLEDGE]
    known = {field: {key.split(".")[1] for key, *_ in tensors if key.startswith(f"{field}.")} for field in KNOWLEDGE}
    counts = {field: len(identities) for field, identities in known.items()}
    parsed = json.loads(content)
    try:
        for older in range(version, FORMAT_VERSION):
            parsed = UPGRADES[older](parsed)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} of format {version} lacks what such files have ({error}): it was changed") from error
    return Header(name, path, version, parsed, sum(map(math.prod, weights)), counts)


def digest(tensors: Iterable[tuple[str, str, tuple[int, ...], Any]], content: str) -> str:
    """SHA-256 over the specs and every tensor: its name, type, shape and bytes."""
    sha = hashlib.sha256(content.encode())
    for name, dtype, shape, data in sorted(tensors, key=lambda tensor: tensor[0]):
        sha.update(f"{name} {dtype} {shape}".encode())
        sha.update(data)
    return sha.hexdigest()


def _parsed(data: bytes) -> tuple[dict[str, str], list[tuple[str, str, tuple[int, ...], memoryview]]]:
    """The strings of a safetensors file, and name, type, shape and bytes of its tensors."""
    if len(data) < 8 or (size := int.from_bytes(data[:8], "little")) > len(data) - 8:
        raise ValueError("its header is cut short")
    header = json.loads(data[8 : 8 + size])
    body = memoryview(data)[8 + size :]
    metadata = header.pop("__metadata__", {})
    tensors = []
    for name, entry in header.items():
        dtype, width = DTYPES[entry["dtype"]]
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if end > len(body) or end - begin != width * math.prod(shape):
            raise ValueError(f"tensor {name} is cut short")
        tensors.append((name, f"torch.{dtype}", shape, body[begin:end]))
    return metadata, tensors


def _from_1(content: dict[str, Any]) -> dict[str, Any]:
    """Before there were priors and handed layers, and before anything was known of molecules."""
    return {**content, "model": {"prior": "static", "handed": False, **content["model"]}}


def _from_2(content: dict[str, Any]) -> dict[str, Any]:
    """Options stood beside the other fields, those of EGHNO in every model."""
    options = dict(content["model"])
    model = {key: options.pop(key) for key in ("operator", "length_scale", "prior", "keep_bonds") if key in options}
    if model.get("operator") != "eghno":
        for key in ("clusters", "pooling_layers", "decoder_layers", "placement", "assignment", "cut_weight"):
            options.pop(key, None)
    return {**content, "model": {**model, "options": options}}


def _from_3(content: dict[str, Any]) -> dict[str, Any]:
    """Every model had one stride, and drew from the processes of its own molecules without seeing their mean."""
    model = dict(content["model"])
    if model["operator"] == "flow":
        model["options"] = {"base": "own", "informed": False, **model["options"]}
    return {**content, "window": {"stride_range": None, **content["window"]}, "model": model}


#: What makes of a file's specs those of the next version. The names of the tensors have not changed yet.
UPGRADES = {1: _from_1, 2: _from_2, 3: _from_3}
