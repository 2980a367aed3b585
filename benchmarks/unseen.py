"""Changes of the numerical core that no test notices because no result shows them, and why: see `mutants`.

A change is named by its function, and where several of it read alike by their number. Where a function is rewritten,
its changes have to be looked at again.
"""

from __future__ import annotations

UNSEEN = {
    "evaluation/score.py": {
        "score: 2000 -> 2001": "a limit, where one more is as good",
    },
    "evaluation/slow.py": {
        "SlowComponents.fit: 0 -> 1 (#5)": "which way a component points is arbitrary",
    },
    "forecast/bridge.py": {
        "the module: 2 -> 3": "the size of pieces; a limit for more than 40,000 atoms",
    },
    "forecast/drawn.py": {
        "the module: 21 -> 22": "the size of pieces, which costs memory alone",
    },
    "forecast/forecasters.py": {
        "InternalMotion.fit: -(-len(pairs) // MOTION_FRAMES) -> -len(pairs) // MOTION_FRAMES": (
            "the same frames in reverse order, whose mean structure is the same one, turned"
        ),
        "the module: 1000 -> 1001": "a limit, where one more is as good",
    },
    "forecast/network.py": {
        "ElasticNetwork.fit: 0 -> 1 (#7)": "both columns are missing together",
        "own_frame: -1 -> 1": "the second axis is the last of two",
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
    },
    "molecule/local.py": {
        "LocalGeometry.fit: 1 -> 2 (#5)": "two frames are read, of which the first one is taken",
    },
    "graph/graph.py": {
        "Graph.split: 0 -> 1": "both ends of an edge lie in one graph",
    },
    "molecule/kernels.py": {
        "sweep: 3 -> 4": "a column that nobody reads",
        "_larger: found > known -> found >= known": "of two that are the same either will do",
    },
    "nn/edges/backend.py": {
        "Edges.block_size: 1 -> 2": "the size of pieces on a GPU, which costs memory alone",
        "the module: 2 -> 3 (#2)": "the size of pieces, which costs memory alone",
    },
    "nn/edges/block.py": {
        "_EdgeBlock.forward: 2 -> 3": "the weights of a layer and their bias have one length",
        "edge_block: 0 -> 1 (#2)": "when compiled code is taken, which costs time alone",
    },
    "nn/edges/layer.py": {
        "_Edges.of: 3 -> 4": "an array without rows",
    },
    "nn/edges/triton.py": {
        "_launch: 64 -> 65": "how many threads a block has on a GPU, which costs time alone",
    },
    "nn/egnn.py": {
        "the module: 2 -> 3": "how much is kept, which costs memory alone",
    },
    "nn/flow_network.py": {
        "Level.add_layers: 0.1 -> 0.15000000000000002": "the weights are set to 0 afterwards",
    },
    "nn/spectral.py": {
        "time_embedding: -1 -> 1": "the second axis is the last of two",
    },
    "propagator/dynamics.py": {
        "Dynamics.relax: 2 -> 3 (#2)": "how many samples a mean has",
        "Dynamics.universe: True -> False (#2)": "a list of vectors becomes the same array",
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
    },
    "trajectory/writer.py": {
        "Frames.__init__: False -> True": "the first frame says it before anybody asks",
    },
}
SEEN_BY_NOBODY = {f"egno_md/{file}:{change}": why for file, all_ in UNSEEN.items() for change, why in all_.items()}
