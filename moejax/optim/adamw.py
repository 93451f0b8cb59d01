"""AdamW: Adam with decoupled weight decay, clipping by global norm, and parameter groups.

Paper:  Kingma and Ba 2015, arXiv:1412.6980; Loshchilov and Hutter 2019, arXiv:1711.05101.
State:  count, and the moments mu and nu as trees like the params, without the frozen leaves.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moejax.core.plugin import Wrong
from moejax.optim import groups, offload


@dataclasses.dataclass(frozen=True)
class Config:
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float | None = 1.0  # of the gradient of all leaves that learn
  rules: tuple = ()  # of optim/groups.py
  offload: bool = False  # between steps the moments are in the memory of the host

  def __post_init__(self):
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
      raise Wrong(f"adamw: b1 is {self.b1} and b2 is {self.b2}; both lie in 0..1, below 1.")
    if self.eps <= 0 or self.weight_decay < 0:
      raise Wrong(
        f"adamw: eps is {self.eps} and weight_decay is {self.weight_decay}; eps is above 0, and"
        " weight_decay not below."
      )
    if self.clip_norm is not None and self.clip_norm <= 0:
      raise Wrong(f"adamw: clip_norm is {self.clip_norm}; use a positive number, or None.")


def make(cfg: Config, lr, params, moments="float32", trainable=None, steps=None):
  """The optax transformation for a tree of params, or of their shapes; lr is step -> value.

  `steps` are those of the whole run, for rules with a schedule. `moments` is the dtype of the
  first moment. The second stays float32: it moves by 1 - b2 of itself in a step, which bfloat16
  would round away. Moments on the host stay as they are in a step that is not `good`; elsewhere the
  step sees to it (train/step.py).
  """
  setting = groups.settings(params, cfg.rules, cfg.weight_decay, trainable)
  adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=jnp.dtype(moments))
  wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

  def init(params):
    return adam.init(wide(groups.learning(params, setting)))

  def update(updates, state, params=None, *, good=True):
    rule, part = groups.learning(setting, setting), groups.learning(params, setting)
    grads = jax.tree.map(_masked, groups.learning(updates, setting), rule)
    scale = jnp.float32(1.0)
    if cfg.clip_norm is not None:
      scale = jnp.minimum(1.0, cfg.clip_norm / jnp.maximum(optax.tree.norm(wide(grads)), 1e-30))
    clipped = lambda grads: jax.tree.map(lambda g: g * scale, wide(grads))
    lr_now, count = jnp.float32(lr(state.count)), state.count
    if cfg.offload:
      step, state = offload.streamed(adam, clipped, grads, state, good)
    else:
      step, state = adam.update(clipped(grads), state)
    rate = lambda p, r: lr_now * groups.rate(r, p.ndim, count, steps)
    move = lambda u, p, r: -rate(p, r) * (u + r.weight_decay * p)
    new = jax.tree.map(move, step, part, rule)
    new = jax.tree.map(_masked, new, rule)
    return groups.fill(new, params, jnp.zeros_like), state

  return optax.GradientTransformationExtraArgs(init, update)


def _masked(leaf, rule):
  """The leaf with zeros in the layers that are frozen."""
  return leaf * rule.learns if isinstance(rule.learns, np.ndarray) else leaf
