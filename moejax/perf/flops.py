"""FLOPs and parameters of a model, from its config.

The count is of what is needed, in matmuls: the experts a token uses, the keys a query may see
(a token of a causal sequence sees (T + 1) / 2 on average), the head, no norms and no softmax. A
backward pass is two forward passes; recomputation under remat is not useful work and not counted.
"""

import math

import jax
import jax.numpy as jnp

from moejax.core import axes, plugin, runs
from moejax.layers import moe


def forward(model_cfg, seq_len: int) -> float:
  """FLOPs of a forward pass, per token."""
  return plugin.module(model_cfg).flops(model_cfg, seq_len)


def train(model_cfg, seq_len: int) -> float:
  """FLOPs of training, forward and backward, per token."""
  return 3.0 * forward(model_cfg, seq_len)


def params(model_cfg) -> dict[str, int]:
  """{"total", "active"}: parameters there are, and those that work on one token."""
  model = plugin.module(model_cfg).Model(model_cfg)
  token_BT = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), token_BT)["params"]
  parts = {path: cfg for path, cfg in runs.find(model_cfg.layers, moe.Config)}
  total, active = 0, 0.0
  for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
    names, size = tuple(key.key for key in path), math.prod(leaf.shape)
    cfg = next((cfg for at, cfg in parts.items() if names[: len(at)] == at), None)
    total += size
    if cfg is not None and axes.role(names) == "experts":
      size *= moe.choices(cfg) / (cfg.stored or cfg.num_experts)
    active += size
  return {"total": total, "active": round(active)}
