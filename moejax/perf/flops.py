"""FLOPs and parameters of a model, from its config.

The count is of what is needed, in matmuls: the experts a token uses, the keys a query may see
(a token of a causal sequence sees (T + 1) / 2 on average), the head, no norms and no softmax. A
backward pass is two forward passes; recomputation under remat is not useful work and not counted.
"""

import math

import jax
import jax.numpy as jnp

from moejax.core import axes, plugin, runs
from moejax.layers import moe, table
from pallas_kernels import target

SEQ = 128  # long enough for routers that share a sequence out


def forward(model_cfg, seq_len: int) -> float:
  """FLOPs of a forward pass, per token."""
  return plugin.module(model_cfg).flops(model_cfg, seq_len)


def train(model_cfg, seq_len: int) -> float:
  """FLOPs of training, forward and backward, per token."""
  return 3.0 * forward(model_cfg, seq_len)


def params(model_cfg, seq_len: int = SEQ) -> dict[str, int]:
  """{"total", "active"}: parameters there are, and those that work on one token.

  The length of sequences counts where a router has parameters for each of their slots (Soft MoE).
  """
  total = sum(math.prod(shape) for _, shape in leaves(model_cfg, seq_len))
  return {"total": total, "active": round(touched(model_cfg, 1, seq_len))}


def touched(model_cfg, tokens: int, seq_len: int = SEQ) -> float:
  """Parameters that so many tokens read at least once, as when a batch of texts is decoded.

  Which experts and which rows of memories a token reads is taken as even and independent.
  """
  share = lambda k, n: 1 - (1 - min(k / n, 1)) ** tokens
  owners = runs.find(model_cfg.layers, object)
  owners = [(at, cfg) for at, cfg in owners if isinstance(cfg, moe.Config) or _is_memory(cfg)]
  everyone = [cfg for layer in model_cfg.layers for _, cfg in runs.sections(layer)]
  of_all = sum(plugin.module(cfg).reads(cfg) for cfg in everyone if _reads_shared(cfg))
  total = 0.0
  for names, shape in leaves(model_cfg, seq_len):
    part, letters = 1.0, axes.letters(names[-1])
    cfg = next((cfg for at, cfg in owners if names[: len(at)] == at), None)
    if isinstance(cfg, moe.Config) and axes.role(names) == "experts":
      part = share(moe.choices(cfg), cfg.stored or cfg.num_experts)
    elif "P" in letters:
      reads = plugin.module(cfg).reads(cfg) if cfg and _is_memory(cfg) else of_all
      part = share(reads, shape[-len(letters)])
    total += part * math.prod(shape)
  return total


def _is_memory(cfg) -> bool:
  """Whether its module says how many rows of its table a token reads."""
  return hasattr(plugin.module(cfg), "reads")


def _reads_shared(cfg) -> bool:
  rows = getattr(cfg, "table", None)
  return _is_memory(cfg) and rows is not None and table.is_shared(rows)


def leaves(model_cfg, seq_len: int) -> list[tuple[tuple, tuple]]:
  """(path, shape) of every parameter."""
  model = plugin.module(model_cfg).Model(model_cfg)
  # a sequence for each device: a dispatch on a mesh cuts them, and refuses what it cannot cut
  token_BT = jax.ShapeDtypeStruct((target.devices(), seq_len), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = jax.eval_shape(model.init, key, token_BT)["params"]
  found = jax.tree_util.tree_flatten_with_path(shapes)[0]
  return [(tuple(key.key for key in path), leaf.shape) for path, leaf in found]
