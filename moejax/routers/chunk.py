"""One decision for every chunk of neighbouring tokens: they share their experts and gates.

Paper:  Chaudhary and Browne 2025 (Hydra), arXiv:2508.15099.
Plan:   TokenPlan.   State: none.   Tokens: coupled inside a document.
Causal: yes. Pool mean: no - it looks at the whole chunk.
Study:  configs/studies/chunk_routing.py
Differs from the paper: its text gives no formula, so what a chunk is chosen by is a design of this
        file. Logits are pooled, which is the same as pooling tokens, since the router is linear.

Chunks are cut inside documents, from their first token in the row on. What speaks for a chunk:
previous  the mean of the chunk before it in its document; a learnt vector for the first chunk
first     its own first token
mean      the mean of all its tokens
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  chunk: int = 4  # tokens that share a decision; 1 with the pool "first" is plain top-k
  pool: Literal["previous", "first", "mean"] = "previous"
  renormalise: bool = True  # gates that sum to one

  def __post_init__(self):
    if self.chunk < 1:
      raise Wrong(f"chunk: chunk is {self.chunk}; a decision is for at least 1 token.")


def causal(cfg) -> bool:
  """Whether no later token has a say."""
  return cfg.pool != "mean"


def cut(segment_BT, chunk: int):
  """(number of its chunk in the row, whether that is the first of its document), of each token.

  >>> chunk_BT, first_BT = cut(jnp.array([[1, 1, 1, 2, 2, 2, 2]]), chunk=2)
  >>> chunk_BT.tolist(), first_BT.tolist()
  ([[0, 0, 1, 2, 2, 3, 3]], [[True, True, False, True, True, False, False]])
  """
  at_1T = jnp.arange(segment_BT.shape[1])[None]
  before_BT = jnp.roll(segment_BT, 1, axis=1)
  opens_BT = (segment_BT != before_BT) | (at_1T == 0)
  last = lambda there_BT, value_BT: jax.lax.cummax(jnp.where(there_BT, value_BT, 0), axis=1)
  starts_BT = (at_1T - last(opens_BT, at_1T)) % chunk == 0
  chunk_BT = jnp.cumsum(starts_BT, axis=1) - 1
  return chunk_BT, chunk_BT == last(opens_BT, chunk_BT)


def pool(logit_BTU, first_U, segment_BT, valid_BT, cfg):
  """The logits of each token's chunk."""
  chunk_BT, opening_BT = cut(segment_BT, cfg.chunk)
  take = lambda value_BTU, at_BT: jnp.take_along_axis(value_BTU, at_BT[..., None], axis=1)
  T = chunk_BT.shape[1]
  if cfg.pool == "first":
    starts_BT = jnp.diff(chunk_BT, axis=1, prepend=-1) > 0
    return take(logit_BTU, jax.lax.cummax(jnp.where(starts_BT, jnp.arange(T)[None], 0), axis=1))
  total = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=T))
  count_BT = total(valid_BT.astype(jnp.float32), chunk_BT)
  mean_BTU = total(jnp.where(valid_BT[..., None], logit_BTU, 0), chunk_BT)  # T chunks at most
  mean_BTU = mean_BTU / jnp.maximum(count_BT, 1)[..., None]
  if cfg.pool == "mean":
    return take(mean_BTU, chunk_BT)
  before_BT = jnp.maximum(chunk_BT - 1, 0)
  nothing_BT = opening_BT | (jnp.take_along_axis(count_BT, before_BT, axis=1) == 0)
  return jnp.where(nothing_BT[..., None], first_U[None, None], take(mean_BTU, before_BT))


def select(logit_NU, inputs, cfg):
  """The k highest."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities."""
  return routing.gates(jax.nn.softmax(logit_NU), expert_NK, cfg.renormalise)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    (N, D), T = inputs.x_ND.shape, inputs.seq_len
    gates = [params.weight(self, "gate_DE", over="D", D=D, E=inputs.num_experts)]
    if inputs.virtual:
      gates.append(params.weight(self, "gate_DZ", over="D", D=D, Z=len(inputs.virtual)))
    logit_NU = routing.logits(inputs.x_ND, *gates)
    first_U = jnp.zeros(logit_NU.shape[1])
    if self.cfg.pool == "previous":
      first_D = self.param("first_D", jax.nn.initializers.normal(1.0), (D,))
      first_U = routing.logits(first_D[None], *gates)[0]
    rows = lambda value_N, default: (default if value_N is None else value_N).reshape(N // T, T)
    segment_BT = rows(inputs.segment_N, jnp.ones(N, jnp.int32))
    valid_BT = rows(inputs.valid_N, jnp.ones(N, bool))
    logit_BTU = logit_NU.reshape(N // T, T, -1)
    pooled_BTU = pool(logit_BTU, first_U, segment_BT, valid_BT, self.cfg)
    return pooled_BTU.reshape(logit_NU.shape), inputs
