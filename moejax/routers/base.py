"""BASE: in training every expert takes equally many tokens, so that their scores sum highest.

Paper:  Lewis et al. 2021 (BASE Layers), arXiv:2103.16716; the auction: Bertsekas 1992.
Plan:   TokenPlan.   State: none.   Tokens: coupled in training, independent in evaluation.
Causal: no in training (the assignment is of a whole group), yes in evaluation (the best expert).
Study:  configs/studies/baselines.py
Differs from the paper: tokens bid for experts instead of experts for tokens, which has the same
        best assignment; tokens are not shuffled, a group is a sequence unless model.moe.groups says
        otherwise. Where ids do not divide the tokens of a group, each takes at most the next whole
        number. Experts start as in any other router, not with orthogonal vectors.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong

FEW = 256  # tokens of a group that are ranked by comparing all pairs


@dataclasses.dataclass(frozen=True)
class Config:
  eps: float = 0.02  # of the range of a group's scores: how far a token may be from its best one
  iterations: int = 100  # rounds of bids; who has no expert then takes a place that is left

  def __post_init__(self):
    if self.eps <= 0 or self.iterations < 1:
      raise Wrong(
        f"base: eps {self.eps} and iterations {self.iterations} do not end an auction; use an eps"
        " above 0, as 0.02, and at least 1 iteration."
      )


def choices(cfg):
  """Experts per token."""
  return 1


def assign(score_nU, valid_n, eps, iterations: int):
  """The expert of each token of one group, -1 for padding; at most ceil(valid / U) tokens each.

  The sum of scores is at most eps per token below the highest one, if the rounds suffice.

  >>> score_nU = jnp.array([[5., 4.], [5., 1.], [3., 0.], [1., 0.]])
  >>> assign(score_nU, jnp.ones(4, bool), 0.1, 100).tolist()
  [1, 0, 0, 1]
  """
  n, U = score_nU.shape
  places = -(-valid_n.sum() // U)

  def auction(carry):
    round_, expert_n, bid_n, price_U = carry
    value_nU = score_nU - price_U[None]
    best_n, first_n = value_nU.max(1), value_nU.argmax(1)
    is_first_nU = jnp.arange(U)[None] == first_n[:, None]
    second_n = jnp.max(value_nU, axis=1, where=~is_first_nU, initial=-jnp.inf)
    raise_n = jnp.where(U > 1, best_n - second_n, 0) + eps
    bids_n = valid_n & (expert_n < 0)
    expert_n = jnp.where(bids_n, first_n, expert_n)
    bid_n = jnp.where(bids_n, price_U[first_n] + raise_n, bid_n)
    return round_ + 1, *_kept(expert_n, bid_n, places, U)

  missing = lambda carry: jnp.any(valid_n & (carry[1] < 0)) & (carry[0] < iterations)
  start = (0, jnp.full(n, -1), jnp.zeros(n), jnp.zeros(U))
  _, expert_n, *_ = jax.lax.while_loop(missing, auction, start)
  return _filled(expert_n, valid_n, places, U)


def _kept(expert_n, bid_n, places, U):
  """Who stays: the `places` highest bids for each expert; its price is the lowest of them."""
  expert_n = jnp.where(expert_n < 0, U, expert_n)
  rank_n = _rank(expert_n, bid_n) if len(bid_n) <= FEW else routing.rank(expert_n, -bid_n, U)
  last_nU = (rank_n == places - 1)[:, None] & (expert_n[:, None] == jnp.arange(U)[None])
  price_U = jnp.max(jnp.where(last_nU, bid_n[:, None], 0), axis=0)  # bids are above 0
  return jnp.where((rank_n < places) & (expert_n < U), expert_n, -1), bid_n, price_U


def _rank(expert_n, bid_n):
  """routing.rank by comparing all pairs, which for few tokens is faster than sorting.

  >>> _rank(jnp.array([0, 1, 0, 0]), jnp.array([2.0, 9.0, 3.0, 2.0])).tolist()
  [1, 0, 0, 2]
  """
  n_n = jnp.arange(len(bid_n))
  earlier_nn = (bid_n[None] == bid_n[:, None]) & (n_n[None] < n_n[:, None])
  before_nn = (bid_n[None] > bid_n[:, None]) | earlier_nn
  return jnp.sum(before_nn & (expert_n[None] == expert_n[:, None]), axis=1)


def _filled(expert_n, valid_n, places, U):
  """Tokens that the rounds left without an expert take the free places in order."""
  left_n = valid_n & (expert_n < 0)
  taken_U = jnp.zeros(U, int).at[jnp.where(expert_n < 0, U, expert_n)].add(1, mode="drop")
  free_U = jnp.cumsum(places - taken_U)
  place_n = jnp.searchsorted(free_U, jnp.cumsum(left_n) - 1, side="right")
  return jnp.where(left_n, place_n, expert_n)


def causal(cfg) -> bool:
  """Not in training: the assignment of a group looks at all of it."""
  return False


def select(logit_NU, inputs, cfg):
  """The assignment of every group; without a key, outside training, the highest score."""
  N, U = logit_NU.shape
  k_active = inputs.knobs.get("k_active")
  if inputs.key is None:
    return routing.top_k(logit_NU, 1, k_active)
  valid_N = jnp.ones(N, bool) if inputs.valid_N is None else inputs.valid_N
  score_GnU = jax.lax.stop_gradient(logit_NU).reshape(inputs.groups, -1, U)
  valid_Gn = valid_N.reshape(score_GnU.shape[:2])
  real_GnU = jnp.where(valid_Gn[..., None], score_GnU, score_GnU.mean(2, keepdims=True))
  eps_G = cfg.eps * jnp.maximum(jnp.ptp(real_GnU, axis=(1, 2)), 1e-6)  # equal scores must end, too
  one = lambda score_nU, valid_n, eps: assign(score_nU, valid_n, eps, cfg.iterations)
  expert_N1 = jax.vmap(one)(score_GnU, valid_Gn, eps_G).reshape(N, 1)
  return expert_N1 if k_active is None else jnp.where(k_active > 0, expert_N1, -1)


def weigh(logit_NU, expert_NK, inputs, cfg):
  """The sigmoid of the chosen score."""
  return routing.take(jax.nn.sigmoid(logit_NU), expert_NK)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    return params.linear_logits(self, inputs), inputs
