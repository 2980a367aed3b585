"""Changes of the numerical core that no test notices because no result shows them, and why: see `mutants`.

A change is named by its function, and where several of it read alike by their number. Where a function is rewritten,
its changes have to be looked at again.
"""

from __future__ import annotations

UNSEEN = {
    "evaluation/calibration.py": {
        "energy_score: -2 -> 2": "the last axis but one is the third of four",
        "energy_score: -2 -> 2 (#2)": "the last axis but one is the third of four",
        "the module: 2 -> 3": "the size of pieces, which costs memory alone",
        "the module: 22 -> 23": "the size of pieces, which costs memory alone",
        "Drawn._of: error > 0 -> error >= 0": (
            "0 over 0 is put in its place afterwards, and another number over 0 is infinite anyway"
        ),
        "calibrate: 1 -> 2": "the size of pieces, which costs memory alone",
        "calibrate: 3 -> 4": "the size of pieces, which costs memory alone",
        "calibrate: 2 -> 3 (#2)": "the size of pieces, which costs memory alone",
        "calibrate: 3 * run.builder.n_atoms + 2 * samples -> 3 * run.builder.n_atoms - 2 * samples": (
            "the size of pieces, which costs memory alone"
        ),
        "calibrate: 3 * run.builder.n_atoms + 2 * samples -> 3 * run.builder.n_atoms": (
            "the size of pieces, which costs memory alone"
        ),
    },
    "evaluation/quality.py": {
        "_Describe.within: last < self.radii[0] - 0.001 -> last <= self.radii[0] - 0.001": (
            "a radius that is the bound to the last bit"
        ),
        "_Describe.within: last > self.radii[1] + 0.001 -> last >= self.radii[1] + 0.001": (
            "a radius that is the bound to the last bit"
        ),
    },
    "evaluation/score.py": {
        "score: 2000 -> 2001": "a limit, where one more is as good",
        "the module: 64 -> 65": "the size of pieces, which costs memory alone",
        "the module: 20 -> 21": "the size of pieces, which costs memory alone",
        "score: 1 -> 2 (#2)": "the size of pieces, which costs memory alone",
        "score: 8 -> 9": "the size of pieces, which costs memory alone",
        "score: 3 -> 4": "the size of pieces, which costs memory alone",
        "score: horizon + window.n_times -> horizon": "the size of pieces, which costs memory alone",
    },
    "evaluation/slow.py": {
        "SlowComponents.fit: 0 -> 1 (#5)": "which way a component points is arbitrary",
    },
    "forecast/bridge.py": {
        "the module: 2 -> 3": "the size of pieces; a limit for more than 40,000 atoms",
        "the module: 21 -> 22": "the size of pieces: few pairs at their borders, in runs of 70,000 frames",
        "Bridge.fit: 2 -> 3": "a limit for more than 2 million atoms",
        "Bridge.fit: 8 -> 9": "a limit for more than 40,000 atoms",
        "Bridge.fit: 2 -> 3 (#3)": "three frames are read, of which the first two are taken",
        "Bridge.fill: 1 -> 2 (#2)": "the size of pieces, which costs memory alone",
        "Bridge.fill: 4 -> 5": "the size of pieces, which costs memory alone",
    },
    "forecast/chain.py": {
        "the module: 65536 -> 65537": "the size of pieces on a GPU, which costs memory alone",
        "the module: 16384 -> 16385": "the size of pieces on a GPU, which costs memory alone",
    },
    "forecast/drawn.py": {
        "the module: 21 -> 22": "the size of pieces, which costs memory alone",
        "the module: 2 -> 3 (#2)": "the size of pieces, which costs memory alone",
        "_rows: 1 -> 2": "the size of pieces, which costs memory alone",
        "_rows: 1 -> 2 (#2)": "the size of pieces, which costs memory alone",
        "GaussianProcess.fitted: 1.0 -> 1.5 (#2)": "what is 0 in every window has no part in the regression",
        "the module: 100000 -> 100001": "a limit, where one more is as good",
        "the module: 2 -> 3": "a limit of memory, for large molecules alone",
        "the module: 25 -> 26": "a limit of memory, for large molecules alone",
        "the module: 20000 -> 20001": "a limit, where one more is as good",
    },
    "forecast/forecasters.py": {
        "InternalMotion.fit: -(-len(pairs) // MOTION_FRAMES) -> -len(pairs) // MOTION_FRAMES": (
            "the same frames in reverse order, whose mean structure is the same one, turned"
        ),
        "the module: 1000 -> 1001": "a limit, where one more is as good",
        "the module: 256 -> 257": "the size of pieces, which costs memory alone",
        "the module: 2 -> 3": "the size of pieces, which costs memory alone",
        "the module: 21 -> 22": "the size of pieces, which costs memory alone",
        "Known.windows: 1 -> 2 (#4)": "the size of pieces, which costs memory alone",
        "the module: 500000 -> 500001": "a limit, where one more is as good",
        "InternalMotion.fit: 3 -> 4": "one round more, of which the first ones converge",
    },
    "forecast/gaussian.py": {
        "the module: 2 -> 3": "a limit of memory, for large molecules alone",
        "the module: 23 -> 24": "a limit of memory, for large molecules alone",
        "the module: 1024 -> 1025": "a limit, where one more is as good",
        "the module: 512 -> 513": "a limit, where one more is as good",
    },
    "forecast/network.py": {
        "ElasticNetwork.fit: 0 -> 1 (#7)": "both columns are missing together",
        "own_frame: -1 -> 1": "the second axis is the last of two",
        "the module: 16 -> 17 (#2)": "how much is kept, which costs memory alone",
        "the module: 4000 -> 4001": "a prime number, which no number of atoms divides",
        "the module: 64 -> 65": "a grid to interpolate on, where one place more is as good",
        "the module: 400 -> 401": "a limit, where one more is as good",
    },
    "forecast/operator.py": {
        "the module: 16 -> 17": "from how many windows on a GPU records them, which costs time alone",
        "OperatorWindow._drawn: 1 -> 2 (#2)": "the size of pieces, which costs memory alone",
        "the module: 4096 -> 4097": "the size of pieces, which costs memory alone",
    },
    "forecast/reversion.py": {
        "MeanReversion.fit: grown > BEYOND_CHANCE * np.hypot(2 * all_of * unsure, after_all * np.sqrt(2 / half)) "
        "-> grown >= BEYOND_CHANCE * np.hypot(2 * all_of * unsure, after_all * np.sqrt(2 / half))": (
            "where nothing grows there is no growth altogether either"
        ),
        "MeanReversion.fit: grown @ whole <= 0 -> grown @ whole < 0": "a sum that is 0 to the last bit",
        "the module: 20000 -> 20001": "one atom more in twenty thousand makes no chain more",
    },
    "forecast/rolling.py": {
        "the module: 2048 -> 2049": "the size of pieces, which costs memory alone",
        "the module: 10000000 -> 10000001": "a limit, where one more is as good",
    },
    "forecast/written.py": {
        "Written._measure: 1 -> 2": "the size of pieces, which costs memory alone",
        "Written._measure: 24 -> 25": "the size of pieces, which costs memory alone",
        "Written._compare: 1 -> 2": "the size of pieces, which costs memory alone",
        "Written._compare: 24 -> 25": "the size of pieces, which costs memory alone",
        "the module: 2 -> 3": "the size of pieces, and a limit for more than 5,000 atoms",
        "the module: 23 -> 24": "the size of pieces, and a limit for more than 5,000 atoms",
        "Written._follow: 6 -> 7": "a limit for more than 20,000 atoms",
    },
    "graph/graph.py": {
        "Graph.split: 0 -> 1": "both ends of an edge lie in one graph",
    },
    "graph/windows.py": {
        "the module: 2 -> 3": "from what size on frames stand in a file, which costs memory alone",
        "the module: 30 -> 31": "from what size on frames stand in a file, which costs memory alone",
    },
    "molecule/kernels.py": {
        "sweep: 3 -> 4": "a column that nobody reads",
        "_larger: found > known -> found >= known": "of two that are the same either will do",
    },
    "molecule/local.py": {
        "LocalGeometry.fit: 1 -> 2 (#5)": "two frames are read, of which the first one is taken",
        "the module: 2 -> 3": "the size of pieces, which costs memory alone",
        "the module: 21 -> 22": "the size of pieces, which costs memory alone",
        "the module: 2 -> 3 (#2)": "the size of pieces, which costs memory alone",
        "the module: 15 -> 16": "the size of pieces, which costs memory alone",
        "the module: 3000000 -> 3000001": "when compiled code is taken, which costs time alone",
        "LocalGeometry.fit: 1 -> 2 (#3)": "the size of pieces, which costs memory alone",
        "LocalGeometry.fit: 1 -> 2 (#4)": "the size of pieces, which costs memory alone",
        "LocalGeometry.fit: 3 -> 4": "the size of pieces, which costs memory alone",
        "LocalGeometry.fit: 9 -> 10": "the size of pieces, which costs memory alone",
        "LocalGeometry.project: 1 -> 2 (#2)": "the size of pieces, which costs memory alone",
        "LocalGeometry.project: 1 -> 2 (#3)": "the size of pieces, which costs memory alone",
        "LocalGeometry.project: 3 -> 4": "the size of pieces, which costs memory alone",
        "the module: 20000 -> 20001": "a limit, where one more is as good",
        "the module: 2000000 -> 2000001": "a limit, where one more is as good",
        "_kernel: 'numba' not in sys.modules -> 'numba' in sys.modules": (
            "when compiled code is taken, which costs time alone"
        ),
        "the module: 1000 -> 1001": "when compiled code is taken, which costs time alone",
        "the module: 20 -> 21": "when compiled code is taken, which costs time alone",
        "_Swept: 0 -> 1": "when compiled code is taken, which costs time alone",
        "_kernel: _swept.total + FEW_SWEEPS * bounds < COMPILED_AFTER and 'numba' not in sys.modules -> not "
        "(_swept.total + FEW_SWEEPS * bounds < COMPILED_AFTER and 'numba' not in sys.modules)": (
            "when compiled code is taken, which costs time alone"
        ),
        "_kernel: _swept.total + FEW_SWEEPS * bounds < COMPILED_AFTER and 'numba' not in sys.modules -> "
        "_swept.total + FEW_SWEEPS * bounds < COMPILED_AFTER or 'numba' not in sys.modules": (
            "when compiled code is taken, which costs time alone"
        ),
        "_kernel: _swept.total + FEW_SWEEPS * bounds < COMPILED_AFTER -> _swept.total + FEW_SWEEPS * bounds <= "
        "COMPILED_AFTER": ("when compiled code is taken, which costs time alone"),
        "_kernel: _swept.total + FEW_SWEEPS * bounds -> _swept.total - FEW_SWEEPS * bounds": (
            "when compiled code is taken, which costs time alone"
        ),
        "_kernel: _swept.total + FEW_SWEEPS * bounds -> _swept.total": (
            "when compiled code is taken, which costs time alone"
        ),
        "_kernel: FEW_SWEEPS * bounds -> FEW_SWEEPS / bounds": "when compiled code is taken, which costs time alone",
        "_sweep: SWEEP_COST + len(left) * (len(pairs) + len(corners)) -> SWEEP_COST - len(left) * (len(pairs) + "
        "len(corners))": ("when compiled code is taken, which costs time alone"),
        "_sweep: SWEEP_COST + len(left) * (len(pairs) + len(corners)) -> SWEEP_COST": (
            "when compiled code is taken, which costs time alone"
        ),
        "_sweep: len(left) * (len(pairs) + len(corners)) -> len(left) / (len(pairs) + len(corners))": (
            "when compiled code is taken, which costs time alone"
        ),
        "_sweep: len(pairs) + len(corners) -> len(pairs) - len(corners)": (
            "when compiled code is taken, which costs time alone"
        ),
        "_sweep: len(pairs) + len(corners) -> len(pairs)": "when compiled code is taken, which costs time alone",
    },
    "nn/captured.py": {
        "the module: 1.1 -> 1.6500000000000001": "room for more edges on a GPU, which costs memory alone",
        "the module: 256 -> 257": "room for more edges on a GPU, which costs memory alone",
        "the module: 2 -> 3 (#4)": "above what size a GPU records nothing, which costs time alone",
        "the module: 22 -> 23": "above what size a GPU records nothing, which costs time alone",
    },
    "nn/edges/backend.py": {
        "Edges.block_size: 1 -> 2": "the size of pieces on a GPU, which costs memory alone",
        "the module: 2 -> 3 (#2)": "the size of pieces, which costs memory alone",
        "the module: 2 -> 3": "the size of pieces, which costs memory alone",
        "the module: 19 -> 20": "the size of pieces, which costs memory alone",
        "the module: 26 -> 27": "the size of pieces on a GPU, which costs memory alone",
    },
    "nn/edges/block.py": {
        "_EdgeBlock.forward: 2 -> 3": "the weights of a layer and their bias have one length",
        "edge_block: 0 -> 1 (#2)": "when compiled code is taken, which costs time alone",
        "the module: 2 -> 3": "when compiled code is taken, which costs time alone",
        "the module: 22 -> 23": "when compiled code is taken, which costs time alone",
        "the module: 8 -> 9": "the size of pieces, which costs memory alone",
        "the module: 16 -> 17": "the size of pieces, which costs memory alone",
        "_in_blocks: 2 -> 3": "by how much pieces on a GPU shrink, which costs time alone",
        "edge_block: edge_index.shape[1] * pos.shape[0] * weights[0].shape[0] -> edge_index.shape[1] * "
        "pos.shape[0] / weights[0].shape[0]": ("when compiled code is taken, which costs time alone"),
        "edge_block: edge_index.shape[1] * pos.shape[0] -> edge_index.shape[1] / pos.shape[0]": (
            "when compiled code is taken, which costs time alone"
        ),
        "edge_block: 0 -> 1 (#3)": "when compiled code is taken, which costs time alone",
        "edge_block: 0 -> 1 (#4)": "when compiled code is taken, which costs time alone",
        "edge_block: torch.is_grad_enabled() or size >= _COMPILED_FROM -> torch.is_grad_enabled() and size >= "
        "_COMPILED_FROM": ("when compiled code is taken, which costs time alone"),
        "edge_block: size >= _COMPILED_FROM -> size > _COMPILED_FROM": (
            "when compiled code is taken, which costs time alone"
        ),
    },
    "nn/edges/layer.py": {
        "_Edges.of: 3 -> 4": "an array without rows",
        "the module: 2 -> 3": "the size of pieces, which costs memory alone",
        "the module: 20 -> 21": "the size of pieces, which costs memory alone",
        "_backward: 0 -> 1": "where the first edge is, of which there is none",
    },
    "nn/edges/numba.py": {
        "_force_backward: 0 -> 1 (#2)": "rows are of one length",
        "_force_backward: 0 -> 1": "rows are of one length",
    },
    "nn/edges/triton.py": {
        "_launch: 64 -> 65": "how many threads a block has on a GPU, which costs time alone",
        "_scalars: a[None, :] < n_attr -> a[None, :] <= n_attr": "what is read beside the weights is multiplied by 0",
        "_first_layer: k[None, :] < WIDTH -> k[None, :] <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_first_layer: k < WIDTH -> k <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_first_layer: k[None, :] < WIDTH -> k[None, :] <= WIDTH (#2)": (
            "what is read beside the weights is multiplied by 0"
        ),
        "_first_layer: a[:, None] < n_attr -> a[:, None] <= n_attr": (
            "what is read beside the weights is multiplied by 0"
        ),
        "_forward: n < WIDTH -> n <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_forward: k[:, None] < WIDTH -> k[:, None] <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_forward: n[None, :] < WIDTH -> n[None, :] <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_forward: n[:, None] < WIDTH -> n[:, None] <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_forward: k[None, :] < WIDTH -> k[None, :] <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_forward: k < WIDTH -> k <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_forward: k < WIDTH -> k <= WIDTH (#2)": "what is read beside the weights is multiplied by 0",
        "_backward: n < WIDTH -> n <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_backward: k[:, None] < WIDTH -> k[:, None] <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_backward: n[None, :] < WIDTH -> n[None, :] <= WIDTH (#2)": (
            "what is read beside the weights is multiplied by 0"
        ),
        "_backward: n[:, None] < WIDTH -> n[:, None] <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_backward: k[None, :] < WIDTH -> k[None, :] <= WIDTH (#2)": (
            "what is read beside the weights is multiplied by 0"
        ),
        "_backward: k < WIDTH -> k <= WIDTH": "what is read beside the weights is multiplied by 0",
        "_backward: k < WIDTH -> k <= WIDTH (#2)": "what is read beside the weights is multiplied by 0",
        "_backward: n[:, None] < WIDTH -> n[:, None] <= WIDTH (#2)": (
            "what is read beside the weights is multiplied by 0"
        ),
        "_backward: k[None, :] < WIDTH -> k[None, :] <= WIDTH (#4)": (
            "what is read beside the weights is multiplied by 0"
        ),
        "_backward: k < WIDTH -> k <= WIDTH (#4)": "what is read beside the weights is multiplied by 0",
    },
    "nn/egnn.py": {
        "the module: 2 -> 3": "how much is kept, which costs memory alone",
        "the module: 22 -> 23": "how much is kept, which costs memory alone",
    },
    "nn/flow_network.py": {
        "Level.add_layers: 0.1 -> 0.15000000000000002": "the weights are set to 0 afterwards",
    },
    "nn/pooling.py": {
        "the module: 2 -> 3": "the size of pieces, which costs memory alone",
        "the module: 25 -> 26": "the size of pieces, which costs memory alone",
        "cluster_adjacency: 1 -> 2": "the size of pieces, which costs memory alone",
    },
    "nn/spectral.py": {
        "time_embedding: -1 -> 1": "the second axis is the last of two",
    },
    "propagator/dynamics.py": {
        "Dynamics.relax: 2 -> 3 (#2)": "how many samples a mean has",
        "Dynamics.universe: True -> False (#2)": "a list of vectors becomes the same array",
        "Dynamics.box: True -> False": "a State has its box with or without the positions",
    },
    "trajectory/clock.py": {
        "_read_times: times[0] + spacing * np.arange(n) -> times[0] - spacing * np.arange(n)": (
            "then all frames are read, which say the same"
        ),
        "Clock.per_stride: abs(ratio - every) <= slack -> abs(ratio - every) < slack": (
            "a difference that is the slack to the last bit"
        ),
        "_round: abs(mantissa * power - value) <= slack -> abs(mantissa * power - value) < slack": (
            "a difference that is the slack to the last bit"
        ),
        "Clock.of: rounding > 0.001 * spacing -> rounding >= 0.001 * spacing": (
            "a rounding that is the bound to the last bit"
        ),
        "Clock.shifted: by < 0 -> by <= 0": "none before or after is the frame itself, which was answered above",
        "Clock._place: 1 -> 2 (#2)": "any number below 0 says that there is none",
        "Clock.per_stride: abs(ratio - whole) <= slack -> abs(ratio - whole) < slack": (
            "a difference that is the slack to the last bit"
        ),
        "frame_spacing: abs(other - clock.spacing) > tolerance -> abs(other - clock.spacing) >= tolerance": (
            "a difference that is the bound to the last bit"
        ),
        "frame_spacing: abs(jump - clock.spacing) > tolerance -> abs(jump - clock.spacing) >= tolerance": (
            "a difference that is the bound to the last bit"
        ),
        "_files: here < 0 -> here <= 0": "the first frame is read once more",
        "_files: 0 -> 1 (#3)": "the first frame is read once more",
        "_by_steps: np.abs(times - times[0] - slope * steps).max() <= rounding + 0.001 * slope * smallest -> "
        "np.abs(times - times[0] - slope * steps).max() < rounding + 0.001 * slope * smallest": (
            "a difference that is the bound to the last bit"
        ),
        "_by_steps: rounding > 0.001 * slope * smallest -> rounding >= 0.001 * slope * smallest": (
            "a difference that is the bound to the last bit"
        ),
        "_by_steps: open_ > 0.001 * slope * smallest -> open_ >= 0.001 * slope * smallest": (
            "a difference that is the bound to the last bit"
        ),
        "_read_times: np.abs(times - line[sampled]).max() <= time_tolerance(spacing, times) -> np.abs(times - "
        "line[sampled]).max() < time_tolerance(spacing, times)": ("a difference that is the bound to the last bit"),
        "_line: error > 0.001 * spacing + rounding -> error >= 0.001 * spacing + rounding": (
            "a difference that is the bound to the last bit"
        ),
        "_common_spacing: 1 -> 2 (#3)": "all of them weigh the same",
        "_common_spacing: np.diff(steps[:, 0]) > 0.002 * steps[:-1, 0] + np.minimum(steps[1:, 1], steps[:-1, 0] / "
        "2) -> np.diff(steps[:, 0]) >= 0.002 * steps[:-1, 0] + np.minimum(steps[1:, 1], steps[:-1, 0] / 2)": (
            "a difference that is the bound to the last bit"
        ),
        "_even: np.abs(steps) <= np.minimum(tolerance, 0.01 * spacing) -> np.abs(steps) < np.minimum(tolerance, "
        "0.01 * spacing)": ("a difference that is the bound to the last bit"),
        "_even: tolerance > spacing / 2 -> tolerance >= spacing / 2": "a difference that is the bound to the last bit",
        "_even: np.abs(np.diff(times[places]) - spacing) > tolerance[places[1:] - 1] -> "
        "np.abs(np.diff(times[places]) - spacing) >= tolerance[places[1:] - 1]": (
            "a difference that is the bound to the last bit"
        ),
        "_round: slack > 0.01 * value -> slack >= 0.01 * value": "so near there is one number of one digit alone",
        "_round: 0.01 -> 0.015": "so near there is one number of one digit alone",
        "_round: abs(rounded - value) <= slack -> abs(rounded - value) < slack": (
            "a difference that is the slack to the last bit"
        ),
        "_doubts: abs(reader.dt - dt) > 0.0001 * dt -> abs(reader.dt - dt) >= 0.0001 * dt": (
            "a difference that is the bound to the last bit"
        ),
        "_doubts: abs(4 * step - round(4 * step)) < 1e-05 -> abs(4 * step - round(4 * step)) <= 1e-05": (
            "a difference that is the bound to the last bit"
        ),
        "_doubts: step > 0.2 -> step >= 0.2": "which is no quarter, so that it is not doubted anyway",
    },
    "trajectory/writer.py": {
        "Frames.__init__: False -> True": "the first frame says it before anybody asks",
        "write_forecast: 1.0 -> 1.5": "a spacing that the file does not store",
    },
}
SEEN_BY_NOBODY = {f"egno_md/{file}:{change}": why for file, all_ in UNSEEN.items() for change, why in all_.items()}
