"""Is this installation well? Versions, devices, and what the package must do, tried on the bundled sample."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement

from ._version import __version__

#: What a forecast may differ by: turned with its start, and on a GPU from that on the CPU. Angstrom.
TURNED, ON_GPU = 1e-3, 1e-2

#: What a frame may differ by that was written and read again: of DCD single precision, of XTC its own. Angstrom.
WRITTEN = {".dcd": 1e-5, ".xtc": 0.0051}

#: What users install; "" is the package itself.
EXTRAS = ("", "train", "paper", "plot")

#: Less room than this is too little for anything, in bytes.
ROOM = 256 << 20


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is well, and a line on it with the cure where it is not."""

    name: str
    ok: bool
    said: str


def examine() -> list[Finding]:
    """Look at everything; what goes wrong in a check is what it finds.

    Returns
    -------
    list of Finding
        In the order in which one needs the next.
    """
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found += [Finding(name, ok, said) for ok, said in check()]
        except Exception as error:  # whatever is broken here is what was looked for
            said = " ".join(str(error).split())
            found.append(Finding(name, False, f"{type(error).__name__}: {said}"))
    return found


def as_dict(found: list[Finding]) -> dict[str, Any]:
    """All of it as JSON, for a report."""
    return {"egno_md": __version__, "ok": all(one.ok for one in found), "findings": [asdict(one) for one in found]}


def _python() -> Iterator[tuple[bool, str]]:
    yield True, f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _packages() -> Iterator[tuple[bool, str]]:
    """Those that pyproject asks for, and what of the extras is there."""
    versions, wrong = [f"egno_md {__version__}"], []
    for text in importlib.metadata.requires("egno_md") or ():
        wanted = Requirement(text)
        asked = [extra for extra in EXTRAS if wanted.marker is None or wanted.marker.evaluate({"extra": extra})]
        if not asked:
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            if "" in asked:
                wrong.append(f"{wanted.name} is not installed")
            continue
        versions.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} is {version}, {wanted.specifier} is needed")
    for line in wrong:
        yield False, f"{line}: pip install --upgrade egno_md"
    yield True, ", ".join(dict.fromkeys(versions))


def _devices() -> Iterator[tuple[bool, str]]:
    from .forecast.device import described

    for line in described():
        yield True, line


def _folders() -> Iterator[tuple[bool, str]]:
    """Room where temporary files go, and here."""
    for what, folder in (("temporary files", tempfile.gettempdir()), ("this folder", os.getcwd())):
        room = shutil.disk_usage(folder).free
        said = f"{room / 2**30:.1f} GB for {what} ({folder})"
        yield room >= ROOM, said if room >= ROOM else f"only {said}: make room, or choose another one (TMPDIR)"


def _caches() -> Iterator[tuple[bool, str]]:
    """Where compiled functions are kept from one start to the next."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(chosen) if chosen else Path(__file__).parent / "molecule"
    if os.access(folder, os.W_OK) or (chosen and not folder.exists()):
        yield True, f"compiled functions are kept {'in ' + chosen if chosen else 'beside the package'}"
    else:
        yield (
            True,
            "compiled functions are kept in Numba's own folder or nowhere, for the package may not be written to; "
            "where every start takes seconds longer, set NUMBA_CACHE_DIR to a folder of yours",
        )


def _sample() -> tuple[Any, Any, np.ndarray]:
    """The bundled model, its subject in the bundled run, and the past of the last frame (1, P, N, 3)."""
    from .forecast.model import load_model
    from .forecast.subject import Subject
    from .models import sample
    from .trajectory.universe import open_universe

    topology, run = sample()
    model = load_model()
    subject = Subject.of(open_universe(topology, [run]), model.graph, model.window)
    (past,), _ = subject.read([subject.clock.times.size - 1])
    return model, subject, np.asarray(past)[None]


def _equivariance() -> Iterator[tuple[bool, str]]:
    """A start that is turned and moved has to give the forecast turned and moved, a run its futures, seed by seed."""
    from .analysis import EGNOSurrogate
    from .forecast.chain import forecast

    model, subject, past = _sample()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)  # no mirror
    shift = np.array([7.0, -3.0, 11.0])
    plain = forecast(model, subject.builder, past, 8, device="cpu").astype(float)
    turned = forecast(model, subject.builder, past @ turn.T + shift, 8, device="cpu")
    error = float(np.abs(turned - (plain @ turn.T + shift)).max())
    yield _within(error, TURNED, "a forecast turns with its start", "reinstall torch, and report this")
    universe = subject.atoms.universe
    universe.transfer_to_memory()
    plain = EGNOSurrogate(universe, "Gaussian process", samples=2).run().results.ensemble.astype(float)
    for frame in universe.trajectory:  # in memory, where what is written stays
        frame.positions = frame.positions @ turn.T + shift
    turned = EGNOSurrogate(universe, "Gaussian process", samples=2).run().results.ensemble
    error = float(np.abs(turned - (plain @ turn.T + shift)).max())
    yield _within(error, TURNED, "futures turn with their run", "reinstall numpy and scipy, and report this")


def _devices_agree() -> Iterator[tuple[bool, str]]:
    from .forecast.chain import forecast
    from .forecast.device import resolve_device

    device = resolve_device("auto")
    if device.type == "cpu":
        yield True, "there is no GPU to be compared with the CPU"
        return
    model, subject, past = _sample()
    both = [forecast(model, subject.builder, past, 8, device=name) for name in ("cpu", device)]
    error = float(np.abs(both[0] - both[1]).max())
    yield _within(error, ON_GPU, f"{device} forecasts what the CPU does", "use --device cpu, and report this")


def _files() -> Iterator[tuple[bool, str]]:
    """Frames that are written and read again."""
    from .trajectory.universe import open_universe
    from .trajectory.writer import write_forecast

    _, subject, past = _sample()
    frames = np.repeat(past[0, -1:], 3, axis=0) + np.arange(3)[:, None, None]  # (3, N, 3)
    times = 5.0 + 0.5 * np.arange(3)
    for suffix, within in WRITTEN.items():
        with tempfile.TemporaryDirectory() as folder:
            target, topology = write_forecast(Path(folder) / f"a{suffix}", subject.atoms, frames, times)
            read = open_universe(topology, [target])
            there = [(ts.positions.copy(), ts.time) for ts in read.trajectory]
        error = max(float(np.abs(xyz - frame).max()) for (xyz, _), frame in zip(there, frames, strict=True))
        late = max(abs(float(at - time)) for (_, at), time in zip(there, times, strict=True))
        what = f"{suffix[1:].upper()} files hold what is written"
        ok, said = _within(error, within, what, "look for a full or broken disk (TMPDIR)")
        yield ok and late < 1e-3, said if late < 1e-3 else f"{what}: times are {late:g} ps off; reinstall MDAnalysis"


def _free() -> Iterator[tuple[bool, str]]:
    """A forecast as `egno-md predict` makes it."""
    from .analysis import EGNOSurrogate
    from .models import sample
    from .trajectory.universe import open_universe

    topology, run = sample()
    surrogate = EGNOSurrogate(open_universe(topology, [run])).run()
    checks = surrogate.results.checks[0]
    wrong = f"its checks failed: {'; '.join(checks.messages)}; report this"
    yield checks.ok, f"{surrogate.engine.name} forecasts the sample" if checks.ok else wrong


def _within(error: float, limit: float, what: str, cure: str) -> tuple[bool, str]:
    if error <= limit:  # False of nan
        return True, f"{what} (within {error:.1g} A)"
    return False, f"{what}: not so, they differ by {error:.3g} A, at most {limit:g} is right; {cure}"


CHECKS: dict[str, Callable[[], Iterator[tuple[bool, str]]]] = {
    "python": _python,
    "packages": _packages,
    "devices": _devices,
    "room": _folders,
    "caches": _caches,
    "symmetry": _equivariance,
    "GPU": _devices_agree,
    "files": _files,
    "forecast": _free,
}
