"""AdamW: Adam with decoupled weight decay, clipping by global norm, and parameter groups.

Paper:  Kingma and Ba 2015, arXiv:1412.6980; Loshchilov and Hutter 2019, arXiv:1711.05101.
State:  count, and the moments mu and nu as trees like the params, without the frozen leaves.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
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
  would round away. With moments on the host it can also `apply` (optim/offload.py).
  """
  setting = groups.settings(params, cfg.rules, cfg.weight_decay, trainable)
  adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=jnp.dtype(moments))
  wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

  def init(params):
    return adam.init(wide(groups.learning(params, setting)))

  def given(updates, state: typing.Any, params):
    """What an update reads besides parameters and moments: the parts that learn."""
    part = groups.learning(params, setting)
    of = lambda fn: jax.tree.map(fn, part, groups.learning(setting, setting))
    grads, learns = groups.learning(updates, setting), of(lambda _, rule: rule.learns)
    scale = jnp.float32(1.0)
    if cfg.clip_norm is not None:
      norm = offload.norm(lambda g, learns: wide(_masked(g, learns)), grads, learns)
      scale = jnp.minimum(1.0, cfg.clip_norm / jnp.maximum(norm, 1e-30))
    lr_now, count = jnp.float32(lr(state.count)), state.count
    rates = of(lambda p, rule: lr_now * groups.rate(rule, p.ndim, count, steps))
    decays = of(lambda _, rule: rule.weight_decay)
    return part, scale, (grads, rates, decays, learns)

  def moves(part, state: typing.Any, scale, grads, rates, decays, learns):
    """What is to be added to a part, and its state."""
    clipped = jax.tree.map(lambda g: g * scale, wide(jax.tree.map(_masked, grads, learns)))
    step, state = adam.update(clipped, state)
    move = lambda u, p, rate, decay, learns: _masked(-rate * (u + decay * p), learns)
    return jax.tree.map(move, step, part, rates, decays, learns), state

  def update(updates, state: typing.Any, params=None):
    part, scale, rest = given(updates, state, params)
    new, state = moves(part, state, scale, *rest)
    return groups.fill(new, params, jnp.zeros_like), state

  def apply(updates, state: typing.Any, params: typing.Any, good):
    part, scale, rest = given(updates, state, params)
    own = {name: (part[name], state.mu[name], state.nu[name]) for name in part}
    rest = {name: tuple(tree[name] for tree in rest) for name in part}

    def one(own, given):
      part, mu, nu = own
      held = optax.ScaleByAdamState(count=state.count, mu=mu, nu=nu)
      move, new = moves(part, held, scale, *given)
      new = (optax.apply_updates(part, move), new.mu, new.nu)
      return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, own)

    new = offload.written_over(one, own, rest)
    part, mu, nu = ({name: three[i] for name, three in new.items()} for i in range(3))
    count = jnp.where(good, optax.safe_increment(state.count), state.count)
    state = optax.ScaleByAdamState(count=count, mu=mu, nu=nu)
    return groups.fill(part, params, lambda leaf: leaf), state

  if cfg.offload:
    return offload.InPlace(init, update, apply)
  return optax.GradientTransformationExtraArgs(init, update)


def _masked(leaf, learns):
  """The leaf with zeros in the layers that are frozen."""
  return leaf if isinstance(learns, bool) else leaf * learns
