"""A router apart from the backbone: a small network reads token ids and decides for all layers.

Paper:  Cai et al. 2024 (Read-ME), arXiv:2410.19123.
Plan:   TokenPlan, the same in every layer.   State: none.   Tokens: coupled inside a document.
Causal: yes.
Study:  configs/studies/pregate.py
Differs from the paper: it is trained with the model, through gates that are 1 and hand the gradient
        of the probability on. The paper's way, in which it learns by `distillation` what the dense
        FFN does while the backbone rests, is lab/pregate.py. Its own embedding starts at random and
        not as a part of the backbone's.

The network is computed once for all layers, before the first of them, and its FLOPs (those of one
narrow layer) are not counted. `look_ahead` needs nothing of the backbone.
"""

import dataclasses
import typing
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong

THETA = 10_000.0  # of the rotary positions


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 1
  rank: int = 64  # width of the network
  heads: int = 4
  depth: int = 1  # blocks of attention and MLP
  gates: Literal["straight_through", "one"] = "straight_through"  # both are 1 / k; see above

  def __post_init__(self):
    if self.heads < 1 or self.rank < 1 or self.rank % (2 * self.heads) or self.depth < 1:
      raise Wrong(
        f"pregate: rank {self.rank} is not cut into {self.heads} heads of even width, or depth"
        f" {self.depth} is below 1; use a rank that twice the heads divides."
      )


def flops(cfg, width: int, ids: int) -> float:
  """Of one layer, per token: the network has been computed before."""
  return 0.0


def select(logit_NU, inputs, cfg):
  """The k highest."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """1 / k for each choice, exactly."""
  used_NK = (expert_NK >= 0).astype(jnp.float32)
  if cfg.gates == "straight_through":
    prob_NK = routing.take(jax.nn.softmax(logit_NU), expert_NK)
    used_NK = used_NK + (prob_NK - jax.lax.stop_gradient(prob_NK))
  return used_NK / cfg.k


def look_ahead(variables: dict, ctx, cfg) -> jax.Array:
  """The ids [N, K] of every layer, from token ids alone.

  `variables` are the params of the model under "pregate"; ctx has token_N, seq_len, vocab and
  num_experts, and segment_N and position_N where rows hold several documents.
  """
  found = typing.cast(dict, Shared(cfg).apply({"params": variables}, ctx))
  return select(found["logit_NU"], ctx, cfg)


def distillation(logit_NE, score_NE) -> jax.Array:
  """The loss of a token by the scores of its experts: mostly the best one, smoothed by half.

  >>> score_NE = jnp.array([[9.0, 0.0], [0.0, 9.0]])
  >>> distillation(jnp.array([[1.0, 0.0], [1.0, 0.0]]), score_NE).round(3).tolist()
  [0.501..., 1.126...]
  """
  E, log_NE = logit_NE.shape[1], jax.nn.log_softmax(logit_NE)
  score_NE = jax.lax.stop_gradient(score_NE)
  best_NE = 0.5 * jax.nn.one_hot(score_NE.argmax(1), E) + 0.5 / E
  target_NE = 0.75 * best_NE + 0.25 * jax.nn.softmax(score_NE)
  return -jnp.sum(target_NE * log_NE, axis=1)


def rotated(x_BTHA, position_BT):
  """Each pair of channels turned by an angle that grows with the position."""
  half = x_BTHA.shape[-1] // 2
  angle = position_BT[..., None, None] * THETA ** (-jnp.arange(half) / half)[None, None, None]
  a, b = x_BTHA[..., :half], x_BTHA[..., half:]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
  """Attention and an MLP of the same narrow width, each behind a norm."""

  cfg: Config

  @nn.compact
  def __call__(self, x_NR, position_BT, same_B1TT):
    x_NR = x_NR + self._attention(self._norm(x_NR, "attention"), position_BT, same_B1TT)
    up_RR, down_RR = self._matrix("up_RR"), self._matrix("down_RR")
    return x_NR + jax.nn.gelu(self._norm(x_NR, "mlp") @ up_RR) @ down_RR

  def _attention(self, x_NR, position_BT, same_B1TT):
    shape = (*position_BT.shape, self.cfg.heads, -1)
    q, k, v = ((x_NR @ self._matrix(f"{name}_RR")).reshape(shape) for name in "qkv")
    q, k = rotated(q, position_BT), rotated(k, position_BT)
    y_BTHA = jax.nn.dot_product_attention(q, k, v, mask=same_B1TT, is_causal=True)
    return y_BTHA.reshape(x_NR.shape) @ self._matrix("out_RR")

  def _matrix(self, name):
    return params.weight(self, name, over="R", R=self.cfg.rank)

  def _norm(self, x_NR, name):
    scale_R = self.param(f"scale_{name}_R", jax.nn.initializers.ones, (self.cfg.rank,))
    return routing.rms_norm(x_NR, scale_R, 1e-6)


class Shared(nn.Module):
  """The network; the model computes it once."""

  cfg: Config

  @nn.compact
  def __call__(self, ctx):
    if ctx.token_N is None or not ctx.vocab:
      raise Wrong("pregate: it reads token ids, and this model has none; use another router.")
    B, T, R = len(ctx.token_N) // ctx.seq_len, ctx.seq_len, self.cfg.rank
    position_BT = jnp.tile(jnp.arange(T), (B, 1))
    if ctx.position_N is not None:
      position_BT = ctx.position_N.reshape(B, T)
    same_B1TT = None
    if ctx.segment_N is not None:
      segment_BT = ctx.segment_N.reshape(B, T)
      same_B1TT = segment_BT[:, None, :, None] == segment_BT[:, None, None]
    init = jax.nn.initializers.normal(1.0)
    x_NR = self.param("table_VR", init, (ctx.vocab, R))[ctx.token_N]
    for i in range(self.cfg.depth):
      x_NR = Block(self.cfg, name=f"block_{i}")(x_NR, position_BT, same_B1TT)
    scale_R = self.param("scale_R", jax.nn.initializers.ones, (R,))
    hidden_NR = routing.rms_norm(x_NR, scale_R, 1e-6)
    return {"logit_NU": params.low_rank_logits(self, hidden_NR, ctx)}


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    logit_NU = inputs.shared["pregate"]["logit_NU"]
    ids = inputs.num_experts + len(inputs.virtual)
    if logit_NU.shape[1] != ids:
      raise Wrong(
        f"pregate: it decides for all layers at once among {logit_NU.shape[1]} ids, and this one"
        f" has {ids}; give every layer with this router as many experts."
      )
    return logit_NU, inputs
