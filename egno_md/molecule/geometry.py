"""Shapes of molecules: lengths, signed volumes, superposition, RMSD; plain arrays in Angstrom."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bond_lengths(positions: NDArray[np.floating], bonds: NDArray[np.integer]) -> NDArray[np.floating]:
    """Distances of bonded atoms, ``(..., N, 3)`` and ``(B, 2)`` to ``(..., B)``."""
    return np.linalg.norm(positions[..., bonds[:, 0], :] - positions[..., bonds[:, 1], :], axis=-1)


def signed_volumes(positions: NDArray[np.floating], corners: NDArray[np.integer]) -> NDArray[np.floating]:
    """Triple products of the arms from the first corner, ``(..., N, 3)`` and ``(Q, 4)`` to ``(..., Q)``."""
    u, v, w = (positions[..., corners[:, k], :] - positions[..., corners[:, 0], :] for k in (1, 2, 3))
    return np.sum(u * np.cross(v, w), axis=-1)


def bonded_neighbours(pairs: NDArray[np.int64], n_atoms: int) -> list[list[int]]:
    """The atoms that each atom is bonded to, in order."""
    found: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in pairs.tolist():
        if i != j:
            found[i].add(j)
            found[j].add(i)
    return [sorted(atoms) for atoms in found]


def runs_of_four(pairs: NDArray[np.int64], n_atoms: int) -> NDArray[np.int64]:
    """Runs of four atoms joined by three bonds, ``(R, 4)``."""
    neighbours = bonded_neighbours(pairs, n_atoms)
    rows = [
        [i, j, k, m]
        for j in range(n_atoms)
        for k in neighbours[j]
        if j < k
        for i in neighbours[j]
        for m in neighbours[k]
        if i != k and m != j and i != m
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def rmsd(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Root mean square deviation in Angstrom over the atoms, without superposition.

    Parameters
    ----------
    predicted, true : ndarray, shape (..., N, 3)

    Returns
    -------
    ndarray, shape (...)
        ``sqrt(3 MSE)`` of the same frames.
    """
    return np.sqrt(np.mean(np.sum((np.asarray(predicted, float) - true) ** 2, axis=-1), axis=-1))


def superposition(mobile: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rotation that brings `mobile` onto `target` (..., N, 3) best, all atoms of one weight (Kabsch).

    Returns
    -------
    rotation : ndarray, shape (..., 3, 3)
        Proper; ``(mobile - centre) @ rotation`` is nearest to the target about its own centre.
    centre : ndarray, shape (..., 1, 3)
    """
    mobile, target = np.asarray(mobile, np.float64), np.asarray(target, np.float64)
    centre = mobile.mean(axis=-2, keepdims=True)  # (..., 1, 3)
    products = np.swapaxes(mobile - centre, -1, -2) @ (target - target.mean(axis=-2, keepdims=True))  # (..., 3, 3)
    return _best_rotations(products.reshape(-1, 3, 3))[0].reshape(products.shape), centre


def superposed_rmsd(predicted: np.ndarray, true: np.ndarray) -> NDArray[np.float64]:
    """RMSD in Angstrom of frames (..., N, 3) superposed on true ones, shape (...); see :func:`rmsd`."""
    predicted, true = (x - np.mean(x, axis=-2, keepdims=True, dtype=np.float64) for x in (predicted, true))
    products = np.swapaxes(predicted, -1, -2) @ true  # (..., 3, 3)
    gain = _best_rotations(products.reshape(-1, 3, 3))[1].reshape(products.shape[:-2])  # (...)
    squares = np.sum(predicted**2, axis=(-2, -1)) + np.sum(true**2, axis=(-2, -1)) - 2 * gain
    return np.sqrt(np.maximum(squares, 0) / predicted.shape[-2])


def _best_rotations(products: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations R (M, 3, 3) with the largest trace of ``R^T H`` for products H (M, 3, 3), and these traces (M,).

    The quaternion of R is the leading eigenvector of a symmetric matrix of four rows (Horn 1987), its eigenvalue the
    trace. That is the largest root of a polynomial of degree 4, found by Newton's method from above (Theobald 2005);
    all of them at once this takes a quarter of the time of as many singular value decompositions. Where the root is not
    simple, as for atoms on a line, there are such decompositions.
    """
    size = np.sqrt(np.sum(products**2, axis=(1, 2)))  # (M,)
    h = products / np.where(size > 0, size, 1.0)[:, None, None]
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.moveaxis(h, 0, -1)  # (M,) each
    matrix = np.empty((len(h), 4, 4))
    upper = [xx + yy + zz, yz - zy, zx - xz, xy - yx, xx - yy - zz, xy + yx, zx + xz, yy - xx - zz, yz + zy]
    upper.append(zz - xx - yy)
    for row, column, value in zip(*np.triu_indices(4), upper, strict=True):
        matrix[:, row, column] = matrix[:, column, row] = value
    gram = np.swapaxes(h, 1, 2) @ h  # (M, 3, 3)
    # x^4 - 2 x^2 + c1 x + c0 for products of norm 1, whose singular values add up to at most the root of 3.
    c1 = -8 * (xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx))
    c0 = 2 * np.sum(gram**2, axis=(1, 2)) - 1
    root = np.full(len(h), np.sqrt(3))
    for _ in range(50):
        slope = (4 * root**2 - 4) * root + c1
        step = np.divide(((root**2 - 2) * root + c1) * root + c0, slope, out=np.zeros_like(root), where=slope > 1e-6)
        root -= step
        if np.abs(step).max(initial=0) < 1e-13:
            break
    slope = (4 * root**2 - 4) * root + c1
    # The polynomial of the matrix without its largest root is the projector on the eigenvector.
    unit, at = np.eye(4), root[:, None, None]
    projector = (matrix + at * unit) @ matrix + (at**2 - 2) * unit
    projector = projector @ matrix + ((at**2 - 2) * at + c1[:, None, None]) * unit  # (M, 4, 4)
    best = np.argmax(np.einsum("mii->mi", projector), axis=1)
    vector = projector[np.arange(len(h)), best]  # (M, 4)
    length = np.linalg.norm(vector, axis=1)
    w, x, y, z = (vector / np.where(length > 0, length, 1.0)[:, None]).T
    rotation = np.moveaxis(np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
        [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)],
        [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
    ]), -1, 0)  # fmt: skip
    for k in np.flatnonzero(~(slope > 1e-3)):
        left, _, right = np.linalg.svd(products[k])
        # Without this a mirror image could be superposed perfectly.
        left[:, -1] *= np.sign(np.linalg.det(left @ right))
        rotation[k], root[k] = left @ right, np.sum(left @ right * h[k])
    return rotation, root * size


def upright(structure: np.ndarray) -> NDArray[np.float64]:
    """A structure (N, 3) about its centre in an orientation of its own: however it was turned before, the same one.

    Two sums over its atoms, weighed by their place in the list, span the first two axes; both change smoothly with the
    atoms, so that the last digits of these do not choose between orientations.
    """
    centred = np.asarray(structure, np.float64) - np.mean(structure, axis=0, dtype=np.float64)
    place = (np.arange(len(centred)) + 0.5) / max(1, len(centred))
    axes: list[np.ndarray] = []
    # Atoms on a line, or one alone, have fewer axes: any others will do.
    for axis in [*(np.cos(np.pi * k * place) @ centred for k in (1, 2, 3)), *np.eye(3)]:
        size = np.linalg.norm(axis)
        for known in axes:
            axis = axis - (axis @ known) * known
        if len(axes) < 2 and np.linalg.norm(axis) > 1e-3 * max(size, 1e-3):
            axes.append(axis / np.linalg.norm(axis))
    return centred @ np.stack([*axes, np.cross(*axes)], axis=1)  # (N, 3)


def aligned(mobile: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """`mobile` superposed on `target`, both (..., N, 3), about the origin."""
    rotation, centre = superposition(mobile, target)
    return (np.asarray(mobile, np.float64) - centre) @ rotation  # (..., N, 3)


def dihedrals(frames: ArrayLike, quadruples: ArrayLike) -> NDArray[np.float64]:
    """Torsions of four atoms each, 0 for cis, positive clockwise along the middle bond (IUPAC).

    Parameters
    ----------
    frames : array_like (..., N, 3)
        Angstrom; molecules whole.
    quadruples : array_like (K, 4)
        Indices of the atoms.

    Returns
    -------
    ndarray (..., K)
        Radians from -pi to pi.
    """
    frames = np.asarray(frames, np.float64)
    quadruples = np.asarray(quadruples, np.int64).reshape(-1, 4)
    corners = frames[..., quadruples, :]  # (..., K, 4, 3)
    first, middle, last = np.moveaxis(np.diff(corners, axis=-2), -2, 0)  # (..., K, 3) each
    left, right = np.cross(first, middle), np.cross(middle, last)  # (..., K, 3)
    along = np.sum(first * right, axis=-1) * np.linalg.norm(middle, axis=-1)  # (..., K)
    return np.arctan2(along, np.sum(left * right, axis=-1))


def radius_of_gyration(xyz: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of every frame ``(..., N, 3)``, all atoms of one weight, Angstrom."""
    return np.sqrt(((xyz - xyz.mean(axis=-2, keepdims=True)) ** 2).sum(axis=-1).mean(axis=-1))
