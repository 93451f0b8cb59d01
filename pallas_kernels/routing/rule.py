"""What a router that chooses by scores decides by, and its gates as a function of the logits."""

import functools
import typing

import jax
import jax.numpy as jnp

SCORES = ("softmax", "sigmoid", "none")


class Rule(typing.NamedTuple):
  """Score, limit to groups, choice, gates: the settings of all implementations."""

  k: int
  score: str = "softmax"
  groups: int = 1  # of neighbouring experts
  keep: int = 1  # groups that a token chooses from
  best: int = 1  # scores of a group, bias included, whose sum speaks for it
  renormalise: bool = True
  scale: float = 1.0


def check(rule: Rule, E: int) -> None:
  """Refuses what cannot be chosen.

  >>> check(Rule(k=3), 2)
  Traceback (most recent call last):
  ValueError: routing: k=3 of 2 experts cannot be chosen; use a k within 1..2.
  """
  k, groups, keep, best = rule.k, rule.groups, rule.keep, rule.best
  if not 1 <= k <= E:
    raise ValueError(f"routing: k={k} of {E} experts cannot be chosen; use a k within 1..{E}.")
  if rule.score not in SCORES:
    raise ValueError(f"routing: there is no score {rule.score!r}; choose one of {SCORES}.")
  if groups == 1:
    return
  if E % groups or not 1 <= keep <= groups or not 1 <= best <= E // groups:
    raise ValueError(
      f"routing: {E} experts in {groups} groups, of which {keep} are kept by their best {best}, do"
      " not fit; use groups that divide the experts, and no more of each than there are."
    )
  if k > keep * (E // groups):
    raise ValueError(
      f"routing: k={k} choices from {keep} groups of {E // groups} experts are too many; keep more"
      " groups."
    )


def scores(logit_NE: jax.Array, score: str) -> jax.Array:
  """Scores of all experts.

  >>> scores(jnp.zeros((1, 2)), "sigmoid").tolist()
  [[0.5, 0.5]]
  """
  if score == "none":
    return logit_NE
  return jax.nn.softmax(logit_NE) if score == "softmax" else jax.nn.sigmoid(logit_NE)


def gates(logit_NE: jax.Array, expert_NK: jax.Array, rule: Rule) -> jax.Array:
  """Scores of the chosen, without a bias; 0 for an unused choice.

  >>> gates(jnp.zeros((1, 2)), jnp.array([[1, -1]]), Rule(2, "sigmoid", scale=3)).tolist()
  [[3.0, 0.0]]
  """
  score_NE = scores(logit_NE, rule.score)
  gate_NK = jnp.take_along_axis(score_NE, jnp.maximum(expert_NK, 0), axis=1)
  gate_NK = jnp.where(expert_NK < 0, 0, gate_NK)
  if rule.renormalise:
    total_N1 = jnp.sum(gate_NK, axis=1, keepdims=True)
    gate_NK = gate_NK / jnp.where(total_N1 == 0, 1, total_N1)
  return rule.scale * gate_NK


def cotangent(logit_NE, expert_NK, dgate_NK, rule: Rule) -> jax.Array:
  """The gradient of the logits for that of the gates; nothing of the size [N, K, E]."""
  used_NK, score_NE = expert_NK >= 0, scores(logit_NE, rule.score)
  value_NK = jnp.take_along_axis(score_NE, jnp.maximum(expert_NK, 0), axis=1)
  value_NK = jnp.where(used_NK, value_NK, 0)
  d_NK = jnp.where(used_NK, rule.scale * dgate_NK, 0)
  if rule.renormalise:
    total_N1 = jnp.sum(value_NK, axis=1, keepdims=True)
    total_N1 = jnp.where(total_N1 == 0, 1, total_N1)
    d_NK = (d_NK - jnp.sum(d_NK * value_NK, axis=1, keepdims=True) / total_N1) / total_N1
  if rule.score == "sigmoid":
    d_NK = d_NK * value_NK * (1 - value_NK)
  if rule.score == "softmax":
    d_NK = d_NK * value_NK
  d_NK, id_1E = jnp.where(used_NK, d_NK, 0), jnp.arange(logit_NE.shape[1])[None]
  at = lambda k: jnp.where(id_1E == expert_NK[:, k, None], d_NK[:, k, None], 0)
  d_NE = functools.reduce(jnp.add, map(at, range(rule.k)))
  if rule.score == "softmax":
    d_NE = d_NE - score_NE * jnp.sum(d_NK, axis=1, keepdims=True)
  return d_NE
