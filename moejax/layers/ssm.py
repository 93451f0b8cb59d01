"""A selective state space: a linear recurrence whose step, input and output follow the token.

Paper:  Gu and Dao 2023 (Mamba), arXiv:2312.00752.
Plan:   none.   State: none.   Tokens: coupled inside a document.   Causal: yes.
Study:  none of its own; blocks/hydra.py is built on it.
Cost:   O(T) per channel and state, as an associative scan; [B, T, F, S] numbers are held.
Differs from the paper: the scan is XLA's and not a fused kernel; documents of a packed row start
        from an empty state.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  hidden: int = 128  # F, channels of the recurrence
  states: int = 8  # S, of a channel
  rank: int = 4  # R, of the step size
  taps: int = 4  # of the convolution before it

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise Wrong(f"ssm: {field.name} is {getattr(self, field.name)}; it must be at least 1.")


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token: projections, the convolution, the recurrence and its reading."""
  F = cfg.hidden
  return 6.0 * width * F + F * (4.0 * cfg.rank + 4.0 * cfg.states + 2.0 * cfg.taps + 6 * cfg.states)


def opens(segment_BT):
  """True at the first token of every document.

  >>> opens(jnp.array([[1, 1, 2, 2]])).tolist()
  [[True, False, True, False]]
  """
  at_1T = jnp.arange(segment_BT.shape[1])[None]
  return (segment_BT != jnp.roll(segment_BT, 1, axis=1)) | (at_1T == 0)


def scan(decay, value):
  """h[t] = decay[t] * h[t - 1] + value[t] along axis 1, from zero.

  >>> scan(jnp.full((1, 3), 0.5), jnp.ones((1, 3))).tolist()
  [[1.0, 1.5, 1.75]]
  """
  join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
  return jax.lax.associative_scan(join, (decay, value), axis=1)[1]


def convolve(u_BTF, conv_WF, segment_BT):
  """Each channel with its own taps over this token and those before it in the document."""
  total_BTF = u_BTF * conv_WF[0][None, None]
  for back in range(1, len(conv_WF)):
    moved_BTF = jnp.roll(u_BTF, back, axis=1)
    same_BT = segment_BT == jnp.roll(segment_BT, back, axis=1)
    same_BT &= (jnp.arange(segment_BT.shape[1]) >= back)[None]
    total_BTF += jnp.where(same_BT[..., None], moved_BTF, 0) * conv_WF[back][None, None]
  return total_BTF


class Layer(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_BTD, ctx):
    (B, T, D), cfg = x_BTD.shape, self.cfg
    F, S, R = cfg.hidden, cfg.states, cfg.rank
    segment_BT = jnp.ones((B, T), int) if ctx.segment_N is None else ctx.segment_N.reshape(B, T)
    size = {"D": D, "F": F, "S": S, "R": R, "W": cfg.taps}
    weight = lambda name, over: params.weight(self, name, over=over, **size)
    u_BTF, z_BTF = x_BTD @ weight("wu_DF", "D"), x_BTD @ weight("wz_DF", "D")
    u_BTF = jax.nn.silu(convolve(u_BTF, weight("conv_WF", "W"), segment_BT))
    bias_F = self.param("bias_F", jax.nn.initializers.constant(-3.0), (F,))  # steps of about 0.05
    step_BTF = jax.nn.softplus(
      (u_BTF @ weight("step_FR", "F")) @ weight("step_RF", "R") + bias_F[None, None]
    )
    in_BTS, out_BTS = u_BTF @ weight("in_FS", "F"), u_BTF @ weight("out_FS", "F")
    log = lambda key, shape, dtype: jnp.log(jnp.arange(1.0, S + 1)[None] + jnp.zeros(shape, dtype))
    rate_FS = jnp.exp(self.param("log_FS", log, (F, S), jnp.float32).astype(jnp.float32))
    step_BTF = step_BTF.astype(jnp.float32)
    decay_BTFS = jnp.exp(-step_BTF[..., None] * rate_FS[None, None])
    decay_BTFS = jnp.where(opens(segment_BT)[..., None, None], 0, decay_BTFS)
    value_BTFS = (step_BTF * u_BTF)[..., None] * in_BTS[:, :, None].astype(jnp.float32)
    y_BTF = jnp.einsum("BTFS,BTS->BTF", scan(decay_BTFS, value_BTFS), out_BTS.astype(jnp.float32))
    skip_F = self.param("skip_F", jax.nn.initializers.ones, (F,))
    y_BTF = y_BTF.astype(u_BTF.dtype) + skip_F[None, None] * u_BTF
    return (y_BTF * jax.nn.silu(z_BTF)) @ weight("wo_FD", "F")
