"""Long forecasts: window after window into a file, in memory that does not grow with the horizon."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError, StoppedError, UnphysicalError, UsageError, counted
from ..files import fingerprint
from ..molecule.checks import PhysicalChecks, Tally
from ..molecule.relax import Relaxation
from ..trajectory.stream import FrameStream, record_path
from ..trajectory.universe import input_files
from ..trajectory.writer import require_targets
from .rolling import Chained, ChainState, Restored, roll
from .subject import Subject


def packed(state: ChainState) -> dict[str, Any]:
    """A state as JSON, to the last bit."""
    return {
        name: [array.dtype.str, list(array.shape), base64.b64encode(np.ascontiguousarray(array)).decode("ascii")]
        for name, array in state.arrays().items()
    }


def unpacked(content: dict[str, Any]) -> ChainState:
    """What :func:`packed` was given."""
    arrays = {
        name: np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
        for name, (dtype, shape, data) in content.items()
    }
    return ChainState.of(arrays)


def write_chain(
    stream: FrameStream,
    forecaster: Chained,
    past: np.ndarray,
    times: np.ndarray,
    *,
    generator: Any = None,
    box: np.ndarray | None = None,
    before: Iterable[tuple[np.ndarray, list[np.ndarray | None], np.ndarray]] = (),
    n_before: int = 0,
    check: Callable[[np.ndarray], PhysicalChecks],
    stop_unphysical: bool = False,
    relaxation: Relaxation | None = None,
    began: Callable[[np.ndarray, np.ndarray | None], Any] = lambda frame, box: None,
    stop_when: Callable[[], bool] = lambda: False,
    progress: Callable[[int], Any] = lambda count: None,
) -> Tally:
    """Forecast from one start into a file, from where the file ends.

    Whatever ends it, the frames of the whole windows before are in the file, and those that are confirmed are gone on
    with to the same bytes.

    Parameters
    ----------
    stream : FrameStream
        Started or resumed; its state is what this function gave it.
    forecaster : Chained
    past : ndarray, shape (1, P, N, 3)
        Frames up to the start in Angstrom.
    times : ndarray, shape (horizon,)
        Of the predicted frames in ps.
    generator : Streams or numpy.random.Generator, optional
        Of a future that is drawn; the state of what is resumed goes on where it stood.
    box : ndarray, shape (6,), optional
        Of the start, kept for all frames.
    before : iterable of frames (F, N, 3), boxes and times
        What the file begins with, before the forecast; those that are in the file already left out.
    n_before : int
        How many frames that is, those in the file among them.
    check : callable
        Looks at predicted frames (F, N, 3) before they are written.
    stop_unphysical : bool
        End before the first frame in which it finds something. The state stays, from which the chain can go on.
    relaxation : Relaxation, optional
        Through which the frames of `forecaster` go: what it moved is counted.
    began : callable
        Called with the first frame of the file and its box, before anything is written.
    stop_when : callable
        Asked after each window.
    progress : callable
        Called with the number of predicted frames that have just been written.

    Returns
    -------
    Tally
        Of all predicted frames; where one of them ended it, of those up to this one.

    Raises
    ------
    OutputError, ModelError
        A frame that cannot be written, or is not finite.
    UnphysicalError
        The first predicted frame ended it.
    StoppedError
        `stop_when` said so.
    """
    horizon = len(times)
    tally, state = _restored(stream)
    done = max(0, stream.n_frames - n_before)
    saved = stream.state
    mark = stream.n_frames, stream.size

    def written(frames: np.ndarray, boxes: list[np.ndarray | None], at: np.ndarray, content: Any) -> None:
        nonlocal saved, mark
        if not stream.n_frames:
            began(frames[0], boxes[0])
        stream.append(frames, boxes, at)
        saved, mark = content, (stream.n_frames, stream.size)
        if stop_when() and stream.n_frames < n_before + horizon:
            stream.confirm(saved)
            raise StoppedError(
                f"stopped after frame {stream.n_frames} of {n_before + horizon}; {stream.path} can be read as it is: "
                "go on with the same command and --resume (resume=True)"
            )
        stream.confirm(saved, now=False)

    if relaxation is not None:
        check = relaxation.checked
    try:
        for frames, boxes, at in before:
            written(frames, boxes, at, None)
        chain = roll(
            forecaster.inner, past, forecaster.times, boxes=[box], generator=generator, state=state,
            reversion=forecaster.reversion,
        )  # fmt: skip
        while done < horizon:
            try:
                window = next(chain)
            except UnphysicalError as error:
                if stream.n_frames == n_before:
                    raise
                raise UnphysicalError(
                    f"{error}; the {counted(stream.n_frames - n_before, 'frame')} before them are in {stream.path}"
                ) from error
            made = window.positions[0, 0]  # (T, N, 3)
            frames = made[: horizon - done].astype(np.float32)  # (F, N, 3)
            found = check(frames).tally
            if stop_unphysical and not found.ok:
                good = found.first
                found = check(frames[: good + 1]).tally
                _unfinished(stream, saved, frames[:good], box, times[done : done + good], began)
                if stream.n_frames == n_before:
                    raise unphysical_start(found)
                mark = (-1, -1)
                return found if tally is None else tally + found
            if relaxation is not None:
                relaxation.moved.clear()
            tally = found if tally is None else tally + found
            at = times[done : done + len(frames)]
            done += len(frames)
            if len(frames) < len(made):
                mark = (-1, -1)
                _unfinished(stream, saved, frames, box, at, began)
            else:
                content = {"chain": packed(window.state), "checks": dataclasses.asdict(tally)}
                written(frames, [box] * len(frames), at, content)
            progress(len(frames))
        if mark == (stream.n_frames, stream.size):
            stream.confirm(saved)
        mark = (-1, -1)
        stream.finish()
    except BaseException:
        # A resumed run then loses nothing that was whole. What was cut short in the middle is not.
        if mark == (stream.n_frames, stream.size) and stream.is_open:
            with contextlib.suppress(OutputError):
                stream.confirm(saved)
        raise
    finally:
        stream.close()
    return tally


def relaxing(
    forecaster: Chained, start: np.ndarray, bonds: np.ndarray, check: Callable[[np.ndarray], PhysicalChecks]
) -> tuple[Chained, Relaxation]:
    """The same forecaster from one start (N, 3), whose frames that fail the checks are relaxed before it goes on."""
    one, keep = forecaster.inner, None
    if isinstance(one, Restored):
        one, keep = one.inner, one.keep
    relaxation = Relaxation(start, bonds, check, keep)
    relaxed = Chained(Restored(one, relaxation), forecaster.times, forecaster.batch_nodes, forecaster.reversion)
    return relaxed, relaxation


def _unfinished(stream: FrameStream, saved: Any, frames: np.ndarray, box: Any, at: np.ndarray, began: Callable) -> None:
    """Add the first frames of a window, which is made again by who goes on."""
    if len(frames) and not stream.n_frames:
        began(frames[0], box)
    stream.confirm(saved)
    stream.append(frames, [box] * len(frames), at)
    if not stream.n_frames:
        stream.discard()


def unphysical_start(found: Tally) -> UnphysicalError:
    """Where no frame is left; `found` is of the first one."""
    return UnphysicalError(
        f"no predicted frame was written, for the first one is not physical: {'; '.join(found.messages)}; use a model "
        "made for this system, or look at the frames with --on-unphysical warn (on_unphysical='warn')"
    )


def _restored(stream: FrameStream) -> tuple[Tally | None, ChainState | None]:
    if stream.state is None:
        return None, None
    try:
        checks = dict(stream.state["checks"])
        found = {kind: tuple(map(int, counts)) for kind, counts in checks.pop("found").items()}
        pairs = {name: tuple(checks[name]) for name in ("radius_ratio", "radius_limits")}
        tally = Tally(found=found, **{**checks, **pairs})
        return tally, unpacked(stream.state["chain"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        stream.close()
        raise OutputError(
            f"{stream.record} is damaged ({error}), so that nothing can be resumed: begin anew with --force "
            "(force=True)"
        ) from error


def require_writable(target: Path, *, streamed: bool, resume: bool, force: bool, inputs: Any) -> None:
    """Refuse a file that may not be written, or a resumption where nothing is to be resumed.

    Raises
    ------
    UsageError, OutputError
    """
    record = record_path(target)
    if resume and not streamed and os.path.exists(target):
        raise UsageError(
            "resume (--resume): nothing to go on with, for a forecast of so few frames, or from several starts, is "
            f"written when it is whole, and {target} is there; choose another name, or begin anew with --force "
            "(force=True) in place of --resume"
        )
    begun = streamed and os.path.exists(record)  # also of names that are too long
    # Where a start was cut short before its record was there, nothing was written yet.
    fresh = not (os.path.exists(target) and target.stat().st_size)
    if resume and not begun and not fresh:
        raise OutputError(
            f"{target} exists, but not {record}, from which it would be gone on with: put that file back, choose "
            "another name, or begin anew with --force (force=True)"
        )
    try:
        require_targets(target, force=force or resume, inputs=inputs)
    except OutputError as error:
        if begun and os.path.exists(target):
            raise OutputError(f"{error}; or go on with it: --resume (resume=True)") from error
        raise


def settings_of(
    subject: Subject, past: np.ndarray, box: np.ndarray | None, model: dict[str, Any], **settings: Any
) -> dict[str, dict[str, Any]]:
    """All that the bytes of a streamed forecast depend on."""
    start = hashlib.sha256(np.ascontiguousarray(past).data)
    start.update(b"" if box is None else box.tobytes())
    return {
        "settings": settings,
        "model": model,
        "input": {
            "files": [fingerprint(name) for name in input_files(subject.atoms.universe) if os.path.isfile(name)],
            "start": start.hexdigest(),
            "molecule": subject.builder.identity,
            "indices": hashlib.sha256(subject.atoms.indices.astype("<i8").tobytes()).hexdigest(),
        },
    }
