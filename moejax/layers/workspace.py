"""Workspace memory: slots that the tokens of a document write to and read from by attention.

Paper:  Chaudhary and Browne 2025 (Hydra), arXiv:2508.15099; after Goyal et al. 2022 (shared global
        workspace), arXiv:2103.01197.
Plan:   none.   State: none.   Tokens: coupled inside a document.   Causal: yes.
Study:  none of its own; a branch of blocks/hydra.py.
Cost:   O(T) per slot; [B, T, P, A] numbers are held.
Differs from the paper: its text gives no formula. Here a slot asks with its learnt start vector,
        and holds the mean, by softmax, of the values of all tokens so far and of that vector: the
        same for a token whatever follows it, and computed for all tokens at once.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params
from moejax.core.plugin import Wrong
from moejax.layers import ssm

CAP = 10.0  # of the scores of writing, so that their powers can be summed as they come


@dataclasses.dataclass(frozen=True)
class Config:
  slots: int = 8  # P
  width: int = 32  # A, of a slot

  def __post_init__(self):
    if self.slots < 1 or self.width < 1:
      raise Wrong(
        f"workspace: slots is {self.slots} and width is {self.width}; both must be at least 1."
      )


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token: four projections, writing and reading."""
  return 8.0 * width * cfg.width + 8.0 * cfg.slots * cfg.width


def written(start_PA, key_BTA, value_BTA, opens_BT):
  """slot_BTPA: what the slots hold once this token has written."""
  score_BTP = jnp.einsum("PA,BTA->BTP", start_PA, key_BTA) * start_PA.shape[1] ** -0.5
  power_BTP = jnp.exp(CAP * jnp.tanh(score_BTP / CAP))
  goes_on = jnp.where(opens_BT, 0.0, 1.0)
  total_BTP = ssm.scan(goes_on[..., None] + jnp.zeros_like(power_BTP), power_BTP)
  new_BTPA = power_BTP[..., None] * value_BTA[:, :, None]
  sum_BTPA = ssm.scan(goes_on[..., None, None] + jnp.zeros_like(new_BTPA), new_BTPA)
  return (start_PA[None, None] + sum_BTPA) / (1 + total_BTP)[..., None]


class Layer(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_BTD, ctx):
    (B, T, D), P, A = x_BTD.shape, self.cfg.slots, self.cfg.width
    segment_BT = jnp.ones((B, T), int) if ctx.segment_N is None else ctx.segment_N.reshape(B, T)
    project = lambda name: (x_BTD @ params.weight(self, name, over="D", D=D, A=A)).astype(
      jnp.float32
    )
    start_PA = self.param("start_PA", jax.nn.initializers.normal(1.0), (P, A)).astype(jnp.float32)
    slot_BTPA = written(start_PA, project("wk_DA"), project("wv_DA"), ssm.opens(segment_BT))
    score_BTP = jnp.einsum("BTA,BTPA->BTP", project("wq_DA"), slot_BTPA) * A**-0.5
    read_BTA = jnp.einsum("BTP,BTPA->BTA", jax.nn.softmax(score_BTP), slot_BTPA)
    return read_BTA.astype(x_BTD.dtype) @ params.weight(self, "wo_AD", over="A", A=A, D=D)
