"""The sweeps of :mod:`egno_md.molecule.local` as one loop over frames, compiled; the same sums in the same order."""

from __future__ import annotations

import numpy as np
from numba import njit

from ..compiled import compiled

# Nothing that changes a sum's order or rounding: the digits are those of the numpy version, to the last bit.
_EXACT = dict(nogil=True, error_model="numpy")


@njit(**_EXACT)
def _clipped(value, low, high):
    if value < low:
        value = low
    return high if value > high else value


@njit(**_EXACT)
def _larger(known, found):
    """The larger one; what is not a number stays."""
    return found if found > known or found != found else known


@njit(**_EXACT)
def _volumes(x, corners, lower, upper, gradients, lack, size, moved):
    """Gradients of the volumes by their corners (Q, 4, 3), what each is out of its bounds by, their squares (Q,).

    Of those with an atom that moved since the last time, (N,); the others are what they were.
    """
    for q in range(len(corners)):
        if not (moved[corners[q, 0]] or moved[corners[q, 1]] or moved[corners[q, 2]] or moved[corners[q, 3]]):
            continue
        g = gradients[q]
        for k in range(1, 4):
            # The gradient by a corner is the cross product of the other two edges.
            first, second, origin = corners[q, k % 3 + 1], corners[q, (k + 1) % 3 + 1], corners[q, 0]
            for c in range(3):
                d, e = (c + 1) % 3, (c + 2) % 3
                g[k, c] = (x[first, d] - x[origin, d]) * (x[second, e] - x[origin, e]) - (
                    x[first, e] - x[origin, e]
                ) * (x[second, d] - x[origin, d])
        volume = squares = 0.0
        for c in range(3):
            g[0, c] = -(g[1, c] + g[2, c] + g[3, c])
            volume += (x[corners[q, 1], c] - x[corners[q, 0], c]) * g[1, c]
        for k in range(4):
            part = 0.0
            for c in range(3):
                part += g[k, c] * g[k, c]
            squares += part
        lack[q] = volume - _clipped(volume, lower[q], upper[q])
        size[q] = squares if not squares < 1e-6 else 1e-6
    moved[:] = False


@njit(**_EXACT)
def _moved(x, move, by_pairs, by_corners):
    """Take `move` (N, 3) off the atoms, and note which of them it moves."""
    for k in range(len(x)):
        if move[k, 0] != 0 or move[k, 1] != 0 or move[k, 2] != 0:
            by_pairs[k] = by_corners[k] = True
            for c in range(3):
                x[k, c] -= move[k, c]


@compiled(_EXACT)
def sweep(frames, pairs, lower, upper, corners, volume_lower, volume_upper, sweeps, relaxation, converged):
    """Bring every frame (M, N, 3) within its bounds, in place; (R, P) bounds of distances, R being M or 1.

    The rest as in the numpy version, :func:`egno_md.molecule.local._sweep`.
    """
    n_atoms, n_pairs, n_corners = frames.shape[1], len(pairs), len(corners)
    apart, length, excess = np.empty((n_pairs, 3)), np.empty(n_pairs), np.empty(n_pairs)
    gradients, lack, size = np.empty((n_corners, 4, 3)), np.empty(n_corners), np.empty(n_corners)
    busy, move = np.empty(n_atoms), np.empty((n_atoms, 3))
    # Atoms that moved since the distances, and since the volumes, were computed: few, after some sweeps.
    by_pairs, by_corners = np.empty(n_atoms, np.bool_), np.empty(n_atoms, np.bool_)
    for f in range(len(frames)):
        x = frames[f]  # (N, 3)
        by_pairs[:] = by_corners[:] = True
        row = f if len(lower) > 1 else 0
        for _ in range(sweeps):
            worst = 0.0
            for p in range(n_pairs):
                i, j = pairs[p, 0], pairs[p, 1]
                if by_pairs[i] or by_pairs[j]:
                    square = 0.0
                    for c in range(3):
                        apart[p, c] = x[i, c] - x[j, c]
                        square += apart[p, c] * apart[p, c]
                    r = np.sqrt(square)
                    if r < 1e-6:
                        r = 1e-6
                    length[p] = r
                    excess[p] = r - _clipped(r, lower[row, p], upper[row, p])
                worst = _larger(worst, abs(excess[p]))
            by_pairs[:] = False
            _volumes(x, corners, volume_lower, volume_upper, gradients, lack, size, by_corners)
            for q in range(n_corners):
                worst = _larger(worst, abs(lack[q]) / np.sqrt(size[q]))
            if not worst > converged:  # also where it is not a number
                break

            busy[:] = 0
            for p in range(n_pairs):
                if excess[p] != 0:
                    busy[pairs[p, 0]] += 1
                    busy[pairs[p, 1]] += 1
            move[:] = 0
            for p in range(n_pairs):
                if excess[p] != 0:
                    i, j = pairs[p, 0], pairs[p, 1]
                    share = min(1.0, relaxation / max(busy[i], busy[j], 1.0))
                    pull = share * 0.5 * excess[p] / length[p]
                    for c in range(3):
                        move[i, c] += pull * apart[p, c]
                        move[j, c] -= pull * apart[p, c]
            _moved(x, move, by_pairs, by_corners)
            if n_corners == 0:
                continue

            _volumes(x, corners, volume_lower, volume_upper, gradients, lack, size, by_corners)
            busy[:] = 0
            for q in range(n_corners):
                if lack[q] != 0:
                    for k in range(4):
                        busy[corners[q, k]] += 1
            move[:] = 0
            for q in range(n_corners):
                if lack[q] != 0:
                    most = 1.0
                    for k in range(4):
                        most = max(most, busy[corners[q, k]])
                    share = min(1.0, relaxation / most) * lack[q] / size[q]
                    for k in range(4):
                        for c in range(3):
                            move[corners[q, k], c] += share * gradients[q, k, c]
            _moved(x, move, by_pairs, by_corners)
