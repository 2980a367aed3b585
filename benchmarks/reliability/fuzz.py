"""Damaged files of every kind that is read, each for a process of its own."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import scene
from .children import run

#: Numbers that headers do not expect.
NASTY = (0, 1, -1, 2, 255, 65536, 2**24, 2**31 - 1, -(2**31), 10**9, 0x7F800000, 0x7FC00000)
NASTY_WORDS = (b"nan", b"inf", b"-1", b"0", b"1e400", b"99999999999999999999", b"", b"-", b"\xff\xfe", b"\x00", b"[]")


class Case(NamedTuple):
    """A file that is damaged: what it is called, its bytes, and the command that reads it in a folder."""

    name: str
    data: bytes
    text: bool
    arguments: Callable[[Path], list]
    beside: dict[str, bytes] = {}  # files that lie there as well


def damaged(data: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """One to three things done to a file: bytes, header fields, cuts, pieces of it elsewhere."""
    for _ in range(rng.integers(1, 4)):
        data = _one(data, rng, text) or data
    return data


def _one(data: bytes, rng: np.random.Generator, text: bool) -> bytes:
    if not data:
        return data
    at, other = (int(rng.integers(len(data))) for _ in range(2))
    length = int(rng.integers(1, 1 + min(64, len(data))))
    if text and rng.random() < 0.6:
        if rng.random() < 0.6:  # a word
            words = list(re.finditer(rb"[^\s,:=\"]+", data))
            if not words:
                return data
            word = words[int(rng.integers(len(words)))]
            return data[: word.start()] + NASTY_WORDS[int(rng.integers(len(NASTY_WORDS)))] + data[word.end() :]
        lines = data.splitlines(keepends=True)
        k, j = (int(rng.integers(len(lines))) for _ in range(2))
        lines[k : k + 1] = [[], [lines[k]] * 2, [lines[j]], [lines[k][: length % (1 + len(lines[k]))] + b"\n"]][
            int(rng.integers(4))
        ]
        return b"".join(lines)
    match int(rng.integers(6)):
        case 0:  # bytes anywhere
            out = bytearray(data)
            for k in rng.integers(len(data), size=rng.integers(1, 9)):
                out[k] = int(rng.integers(256))
            return bytes(out)
        case 1:  # cut off
            return data[:at]
        case 2:  # a number of the first kilobyte
            place = int(rng.integers(max(1, min(len(data), 1024) // 4))) * 4
            number = NASTY[int(rng.integers(len(NASTY)))]
            order = "little" if rng.random() < 0.5 else "big"
            return data[:place] + (number % 2**32).to_bytes(4, order) + data[place + 4 :]
        case 3:  # a piece of it over another
            return data[:at] + data[other : other + length] + data[at + length :]
        case 4:  # a piece left out
            return data[:at] + data[at + length :]
        case _:  # a piece put in
            return data[:at] + data[other : other + length] + data[at:]


def cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """One for each format; `folder` takes what they share."""
    u = scene.chain(30)
    model = scene.write_model(folder / "model.safetensors")
    top, run_file = scene.write(u, folder / "top.pdb"), scene.write(u, folder / "run.xtc")

    def predict(*files, model=model, horizon: int = 2, more: tuple = ()) -> Callable[[Path], list]:
        def arguments(here: Path) -> list:
            found = [here / file if isinstance(file, str) else file for file in files]
            options = ["--model", here / model if isinstance(model, str) else model, "--horizon", horizon]
            return ["predict", *found, *options, "--device", "cpu", "-o", here / "out.dcd", *more]

        return arguments

    for suffix in ("dcd", "xtc", "trr", "nc"):
        file = scene.write(u, folder / f"run.{suffix}")
        yield suffix.upper(), Case(f"run.{suffix}", file.read_bytes(), False, predict(top, f"run.{suffix}"))
    for suffix in ("gro", "pdb", "psf"):
        file = scene.write(u, folder / f"top.{suffix}")
        yield suffix.upper(), Case(f"top.{suffix}", file.read_bytes(), True, predict(f"top.{suffix}", run_file))
    yield "TPR", _tpr(folder, predict)
    data = model.read_bytes()
    yield "model", Case("m.safetensors", data, False, predict(top, run_file, model="m.safetensors"))
    yield "record of a forecast", _record(folder, predict, model)
    recipe = f'data = {{ systems = [{{ topology = "{top}", trajectories = ["{run_file}"] }}] }}\n\n' + RECIPE
    yield "recipe", Case("r.toml", recipe.encode(), True, lambda here: ["train", here / "r.toml", "--print-recipe"])


RECIPE = """\
[graph]
select = "all"
cutoff = 5.0
[window]
n_times = 2
[model]
operator = "egno"
hidden = 8
layers = 2
[training]
max_epochs = 2
batch_size = 4
seed = 1
"""


def _tpr(folder: Path, predict: Callable) -> Case:
    """The smallest one of MDAnalysisTests, and a run of as many atoms."""
    import MDAnalysis as mda
    import MDAnalysisTests

    path = min((Path(MDAnalysisTests.__file__).parent / "data/tprs").glob("*2024*.tpr"), key=lambda p: p.stat().st_size)
    u = mda.Universe(str(path), to_guess=())
    rng = np.random.default_rng(0)
    places = rng.normal(scale=30, size=(len(u.atoms), 3))
    for i, j in u.bonds.indices[u.bonds.indices[:, 1].argsort()]:  # the length of its bond from the one before
        step = rng.normal(size=3)
        places[j] = places[i] + 1.2 * step / np.linalg.norm(step)
    u.load_new(np.float32([places, places + 0.01]), dt=1.0)
    run_file = scene.write(u, folder / "tpr.xtc")
    return Case("top.tpr", path.read_bytes(), False, predict("top.tpr", run_file, more=("--select", "index 0:9")))


def _record(folder: Path, predict: Callable, model: Path) -> Case:
    """A long forecast that was cut short near its end, so that going on takes no time."""
    from egno_md.trajectory.stream import record_path

    horizon = 992
    u = scene.chain()
    files = scene.write(u, folder / "long.pdb"), scene.write(u, folder / "long.dcd")
    arguments = predict(*files, horizon=horizon, more=("--resume",))
    work = folder / "record"
    work.mkdir()
    cut = 12 * len(u.atoms) * (horizon - 40)

    def small() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (cut, cut))

    run(arguments(work), before=small)
    left = {path.name: path.read_bytes() for path in work.iterdir()}
    name = record_path("out.dcd").name
    return Case(name, left.pop(name), True, arguments, left)


def fuzz(case: Case, folder: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """What became of `count` damaged files."""

    def outcome(data: bytes):
        here = folder / "here"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        for name, content in {**case.beside, case.name: data}.items():
            (here / name).write_bytes(content)
        done = run(case.arguments(here), limited=True)
        out = here / "out.dcd"
        return done, out.read_bytes() if out.exists() else done.output.encode()

    right, wanted = outcome(case.data)
    if right.kind != "forecast":
        raise RuntimeError(f"{case.name} is not read even when it is whole: {right.errors}")
    kinds: Counter[str] = Counter()
    found: dict[str, list[str]] = {}
    silent, peak, slowest, same = 0, 0, 0.0, 0
    for k in range(count):
        data = damaged(case.data, np.random.default_rng([seed, k]), case.text)
        done, out = outcome(data)
        kinds[done.kind] += 1
        peak, slowest = max(peak, done.peak), max(slowest, done.seconds)
        if done.kind == "forecast":  # of a recipe: it was read
            if out == wanted:
                same += 1
            elif "warning" not in done.errors.replace("warnings.warn", ""):
                silent += 1
        elif done.kind != "clean error":
            place = [line.strip() for line in done.errors.splitlines() if line.strip()][-1:] or [str(done.code)]
            where = re.findall(r'egno_md/(\S+\.py)", line (\d+)', done.errors)[-1:]
            found.setdefault(done.kind, []).append(f"{k}: {' '.join(map(str, where))} {place[0][:160]}")
    return {
        "files": count,
        "kinds": dict(kinds),
        "same forecast": same,
        "another forecast without a word": silent,
        "peak_MB": round(peak / 1e6),
        "slowest_s": round(slowest, 2),
        "found": {kind: lines[:20] for kind, lines in found.items()},
    }
