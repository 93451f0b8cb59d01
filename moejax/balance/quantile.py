"""Quantile balancing: a bias goes to where, all others held, its id would get its share of tokens.

Paper:  Sun 2025, arXiv:2502.15451: the dual of the linear program that assigns tokens evenly at the
        largest sum of scores; Lewis et al. 2021 (BASE), arXiv:2103.16716, has the program.
Sums:   below_QU: tokens by id and edge whose need is below the edge. The need of a token is how far
        the bias of an id would have to rise for the token to choose it, below 0 where it already
        does; the bias that gives an id its share is a quantile of the needs.
State:  bias_U of a router that chooses with one (routers/sigmoid_topk.py, biased_topk.py).
Study:  configs/studies/auxfree_vs_aux.py
Differs from the paper: the quantiles are those of a whole step, so that micro-batches and devices
        add up; needs are counted between edges, a power of two each, and quantiles lie between
        these on a line. Since all biases move at once, each goes only a part of its way.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.core import controllers, routing
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong

POWERS = tuple(2.0**-i for i in range(16))
EDGES = tuple(-p for p in POWERS) + (0.0,) + POWERS[::-1]


@dataclasses.dataclass(frozen=True)
class Config(controllers.Aim):
  speed: float = 0.5  # the part of its way a bias goes in a step; the knob bias_speed replaces it
  score: Literal["sigmoid", "softmax"] = "sigmoid"  # that the router adds its bias to


def observe(plan, logit_NU, inputs, cfg):
  """The sums of one layer."""
  if not isinstance(plan, TokenPlan):
    raise Wrong("quantile: in the router's plan experts choose; their load is even anyway.")
  score = jax.nn.sigmoid if cfg.score == "sigmoid" else jax.nn.softmax
  biased_NU = (
    jax.lax.stop_gradient(score(logit_NU)) + inputs.state.get("bias_U", jnp.zeros(1))[None]
  )
  need_NU = needs(biased_NU, plan.expert_NK)
  if inputs.valid_N is not None:
    need_NU = jnp.where(inputs.valid_N[:, None], need_NU, jnp.inf)
  below = lambda edge: jnp.sum(need_NU < edge, axis=0).astype(jnp.float32)
  return {"below_QU": jax.lax.map(below, jnp.array(EDGES))}


def needs(biased_NU, expert_NK):
  """What each bias has to rise by until the token chooses its id; below 0: by how much it may fall.

  >>> needs(jnp.array([[0.75, 0.5, 0.0]]), jnp.array([[0]])).tolist()
  [[-0.25, 0.25, 0.75]]
  """
  chosen_NU = routing.chosen(expert_NK, biased_NU.shape[1])
  least_N1 = jnp.min(biased_NU, 1, keepdims=True, where=chosen_NU, initial=jnp.inf)
  next_N1 = jnp.max(biased_NU, 1, keepdims=True, where=~chosen_NU, initial=-jnp.inf)
  return jnp.where(chosen_NU, next_N1, least_N1) - biased_NU


def rise(below_QU, goal_U):
  """The move nearest to 0 below which each id has its goal of needs.

  >>> below_QU = jnp.where(jnp.array(EDGES) > 0.25, 8.0, 4.0)[:, None]
  >>> [float(rise(below_QU, jnp.array([goal]))[0]) for goal in (4.0, 6.0, 9.0)]
  [0.0, 0.375, 1.0]
  """
  edge_Q, zero = jnp.array(EDGES), len(POWERS)
  up_U = goal_U > below_QU[zero]
  first_U = jnp.sum(below_QU < goal_U[None], axis=0)
  last_U = jnp.sum(below_QU <= goal_U[None], axis=0)
  q_U = jnp.clip(jnp.where(up_U, first_U, last_U), 1, len(EDGES) - 1)
  at = lambda q_U: jnp.take_along_axis(below_QU, q_U[None], axis=0)[0]
  low_U, high_U = at(q_U - 1), at(q_U)
  part_U = jnp.clip((goal_U - low_U) / jnp.maximum(high_U - low_U, 1), 0, 1)
  to_U = edge_Q[q_U - 1] + part_U * (edge_Q[q_U] - edge_Q[q_U - 1])
  return jnp.where(goal_U == below_QU[zero], 0, to_U)


def update(params, state, sums, knobs, cfg):
  """The router's state after a step; biases move around a mean that stays."""
  goal_U = controllers.target(sums, cfg) * sums["count_U"].sum()
  step_U = rise(sums["below_QU"], goal_U)
  if cfg.virtual == "moved":
    step_U = step_U - step_U.mean()
  return controllers.moved(state, step_U, sums, knobs, cfg)
