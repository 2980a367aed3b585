"""A model that is learned from the run that is forecast: what it may know, whether it is kept, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from test_evaluation import called, universe_of, wobbling
from test_metrics import tumbled

from egno_md import EGNOSurrogate, load_model
from egno_md.errors import DataError, UsageError
from egno_md.forecast.subject import Subject
from egno_md.hindcast.learned import NAME, Learned
from egno_md.hindcast.material import Judged, Material

FRAMES = 500


@pytest.fixture(scope="module")
def universe():
    return universe_of(tumbled(wobbling(FRAMES, phi=0.9)))


def judged_of(universe):
    material = Material.of(Subject.plain(universe, "all"), 4)
    return material, Judged.last(material, 1 / 3, 4, 20)


def test_it_is_trained_on_known_frames_kept_beside_the_forecast_and_taken_from_there(universe, tmp_path, monkeypatch):
    # As on a machine that takes so long for a step: the number of steps is the same on every other one.
    monkeypatch.setattr("egno_md.hindcast.learned._seconds_of_step", lambda *_: 100.0)
    material, judged = judged_of(universe)
    learned = Learned(material, "all", 12_000.0, starts=[FRAMES - 1], beside=tmp_path / "run.dcd", device="cpu")
    learned(judged.known)
    assert learned.engine.draws and learned.engine.name == NAME and learned.engine.n_times == 4
    trained = learned.engine.model.provenance["training"]
    assert trained["windows"] + trained["validation_windows"] < sum(map(len, judged.known.segments)) < 0.7 * FRAMES
    (kept,) = tmp_path.glob("run_learned_*.safetensors")
    assert load_model(kept).fingerprint == learned.engine.fingerprint
    again = Learned(material, "all", 12_000.0, starts=[FRAMES - 1], beside=tmp_path / "run.dcd", device="cpu")
    written = kept.stat().st_mtime_ns
    again(judged.known)
    assert again.engine.fingerprint == learned.engine.fingerprint and kept.stat().st_mtime_ns == written
    # Other frames are another run, whatever the file is called.
    judged.known.segments[0][0, 0, 0] += 1
    assert again._kept(judged.known) != kept
    judged.known.segments[0][0, 0, 0] -= 1
    # The file is a model as any other.
    surrogate = EGNOSurrogate(universe, str(kept), horizon=8, samples=2).run()
    assert surrogate.results.ensemble.shape == (1, 2, 8, 10, 3) and np.isfinite(surrogate.results.ensemble).all()


def test_what_it_must_not_know_and_what_is_too_little_is_said_and_the_others_forecast(universe):
    material, judged = judged_of(universe)
    last = sum(map(len, judged.known.segments)) - 1
    with pytest.raises(DataError, match=f"would know what follows frame 7, .* up to {last}: forecast from a later one"):
        Learned(material, "all", 60.0, starts=[7, FRAMES - 1])(judged.known)
    with pytest.raises(DataError, match="steps? of training, and fewer than 50 are not worth it: give it [0-9]+ s"):
        Learned(material, "all", 0.5, starts=[FRAMES - 1])(judged.known)
    short = universe_of(tumbled(wobbling(120, phi=0.9)))
    surrogate = EGNOSurrogate(short, adapt=60).run()
    (said,) = [line for line in surrogate.decisions if line.startswith(NAME)]
    assert said.endswith("windows to learn from are too few, 200 are needed") and surrogate.engine.name != NAME


def test_bad_values_name_the_argument(universe):
    for seconds in (-1, float("nan"), "soon", 1e6):
        with pytest.raises(UsageError, match="adapt .--adapt. is a number of seconds from 0 to 86,400, found"):
            EGNOSurrogate(universe, adapt=seconds)
    with pytest.raises(UsageError, match="adapt.*'analogues' is to forecast it: give one of them"):
        EGNOSurrogate(universe, "analogues", adapt=10)
    done = called("predict", "nosuch.pdb", "--adapt", "soon")
    assert done.exit_code == 2 and "soon" in done.output
