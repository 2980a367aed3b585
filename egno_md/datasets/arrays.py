"""Files of arrays that a user has: found, opened without running anything in them, and checked."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

#: What pickled numpy arrays are made of; nothing else is loaded from a pickle.
_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
}


def existing(path: Path, cure: str) -> Path:
    """The path, or a DataError that says what to do where there is no file."""
    if not path.is_file():
        raise DataError(f"there is no file {path}: {cure}")
    return path


def read_npz(path: Path, shapes: Mapping[str, tuple[int | None, ...]], cure: str) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file; other ones in it stay unread.

    Parameters
    ----------
    path : Path
    shapes : mapping
        Of every array that is needed its shape, None for any length.
    cure : str
        What to do where the file is missing or another one.

    Raises
    ------
    DataError
        No such file, no npz file, an array that is missing, of another shape, or not finite.
    """
    found = {}
    try:
        with np.load(existing(path, cure)) as file:
            for name, shape in shapes.items():
                if name not in file:
                    raise DataError(f"{path} has no array {name!r}, but {', '.join(file)}: {cure}")
                found[name] = _checked(path, name, file[name], shape, cure)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an npz file ({error}): {cure}") from error
    return found


def _checked(path: Path, name: str, array: NDArray[Any], shape: tuple[int | None, ...], cure: str) -> NDArray[Any]:
    wanted = " x ".join("any" if length is None else str(length) for length in shape)
    fits = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits:
        raise DataError(f"{path}: {name!r} has the shape {array.shape}, expected {wanted}: {cure}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"{path}: {name!r} holds {int((~np.isfinite(array)).sum())} numbers that are not finite: {cure}"
        )
    return array


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which is no array")
        return super().find_class(module, name)


def read_pickle(path: Path, cure: str) -> Any:
    """Lists, mappings and numpy arrays from a pickle; a file with anything else in it is refused before it runs.

    Raises
    ------
    DataError
        No such file, or one with something else in it.
    """
    try:
        with existing(path, cure).open("rb") as file:
            return _Unpickler(file).load()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a pickle of arrays ({error}): {cure}") from error


def check_split(path: Path, parts: Mapping[str, NDArray[Any]], what: str) -> None:
    """Refuse parts that share a row.

    Raises
    ------
    DataError
    """
    names = list(parts)
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            a, b = ({tuple(np.atleast_1d(row).tolist()) for row in parts[name]} for name in (one, other))
            if shared := sorted(a & b):
                raise DataError(
                    f"{path}: {one} and {other} share {len(shared)} {what} ({shared[0]} is the first): a model would "
                    "be judged on what it was trained on; use the file as it was published, or a split without overlap"
                )
