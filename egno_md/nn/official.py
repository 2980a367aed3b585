"""Weights of the original implementations of EGNO and EGHN, read into our modules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from .eghno import EGHNO
from .egno import EGNO

#: From a name in the original state dict to ours, applied in turn.
RENAMES = (
    (r"^(low|high)_force_net\.embedding\.", r"\1_embedding."),
    (r"^(low|high)_force_net\.", r"\1."),
    (r"^low_pooling\.pooling\.", "pooling.head."),
    (r"^low_pooling\.", "pooling."),
    (r"^kinematics_net\.(?!layers\.)", "decoder.layers.0."),
    (r"^kinematics_net\.", "decoder."),
    (r"^layers\.", "block.layers."),
    (r"^time_conv_modules\.(\d+)\.t_conv\.weights1$", r"block.scalar_conv.\1.weight"),
    (r"^time_conv_x_modules\.(\d+)\.t_conv\.weights1$", r"block.vector_conv.\1.weight"),
    (r"\.edge_message_net\.scalar_net\.mlp\.", ".message."),
    (r"\.edge_message_net\.in_scalar_net\.mlp\.", ".message."),
    (r"\.edge_message_net\.out_vector_net\.mlp\.", ".vector."),
    (r"\.coord_net\.mlp\.", ".coord."),
    (r"\.node_v_net\.mlp\.", ".velocity."),
    (r"\.node_net\.mlp\.", ".node."),
    (r"\.(in_scalar|out_vector|out_scalar)_net\.mlp\.", r".\1."),
)


def our_name(name: str) -> str:
    """The name that a parameter of the original code has in our modules."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(weights: Mapping[str, Any], config: Mapping[str, Any] | str) -> nn.Module:
    """Build :class:`EGNO` or :class:`EGHNO` with the weights of the original code.

    Parameters
    ----------
    weights : mapping of str to array
        Original parameter names to arrays, as in its state dict.
    config : mapping or str
        Arguments of the original constructor by its names, or the same as JSON. ``n_cluster`` tells EGHN from EGNO.

    Returns
    -------
    nn.Module
        In eval mode, with the precision of the weights; an EGHN is an `EGHNO` without temporal convolutions, time
        embedding and with one time point.

    Raises
    ------
    ModelError
        If the configuration lacks an entry, or weights are missing, unknown or of another shape.
    """
    config = json.loads(config) if isinstance(config, str) else config
    try:
        model = _eghn(config) if "n_cluster" in config else _egno(config)
    except KeyError as error:
        raise ModelError(f"the configuration of the original model lacks {error}; found {sorted(config)}") from None
    state = {our_name(name): torch.as_tensor(array).clone() for name, array in weights.items()}
    expected = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    if shapes != wanted:
        differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        first = differ[0]
        raise ModelError(
            f"{len(differ)} weights do not fit the configuration; {first}: found {shapes.get(first, 'nothing')}, "
            f"expected {wanted.get(first, 'nothing')}. Give the configuration the weights were trained with"
        )
    model.to(next(iter(state.values())).dtype).load_state_dict(state)
    return model.eval()


def _egno(config: Mapping[str, Any]) -> EGNO:
    return EGNO(
        config["in_node_nf"],
        config["in_edge_nf"],
        config["hidden_nf"],
        config["n_layers"],
        n_times=config["T"],
        modes=config["num_modes"],
        time_embedding=config["time_emb_dim"],
        time_conv="full" if config["use_time_conv"] else "none",
        flat=config["flat"],
        norm=config["norm"],
    )


def _eghn(config: Mapping[str, Any]) -> EGHNO:
    return EGHNO(
        config["in_node_nf"],
        config["in_edge_nf"],
        config["in_edge_nf"],
        config["hidden_nf"],
        config["layer_per_block"],
        n_times=1,
        clusters=config["n_cluster"],
        pooling_layers=config["layer_pooling"],
        decoder_layers=config["layer_decoder"],
        time_embedding=0,
        time_conv="none",
        flat=config["flat"],
        norm=config.get("norm", False),
    )
