"""The load loss: the squared coefficient of variation of a smooth count of choices.

A token counts for an id with the probability that another draw of the noise on this id's logit
alone would still choose it, or would have.

Paper:  Shazeer et al. 2017, arXiv:1701.06538 (threshold others); Riquelme et al. 2021 (V-MoE),
        arXiv:2106.05974 (threshold all).
Sums:   load_U (probabilities by id). Noisy routers leave their clean logits and the deviation of
        the noise as extras; for other routers it is 1 / U, that of V-MoE.
Value:  0 per layer when all ids are as likely to be chosen; U / K - 1 at collapse on K ids.
Study:  configs/studies/conventions.py
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.core import routing
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong

NEVER = -1e30  # a logit that no id has to exceed, finite for the sake of gradients


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 0.01
  threshold: Literal["others", "all"] = "all"  # the k-th logit of the other ids, or of all ids


def observe(plan, logit_NU, inputs, cfg):
  """The sum of one layer."""
  if not isinstance(plan, TokenPlan):
    raise Wrong("load: here experts choose, and their load is even anyway; take the entry out.")
  K = plan.expert_NK.shape[1]
  k = jnp.minimum(inputs.knobs.get("k_active", K), K)
  clean_NU = inputs.extras.get("clean_NU", logit_NU)
  noise_NU = inputs.extras.get("noise_NU", 1 / logit_NU.shape[1])
  threshold_NU = _threshold(logit_NU, K, k, cfg)
  load_NU = jax.scipy.stats.norm.cdf((clean_NU - threshold_NU) / noise_NU)
  if inputs.valid_N is not None:
    load_NU = jnp.where(inputs.valid_N[:, None], load_NU, 0)
  return {"load_U": load_NU.sum(0)}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> float(loss({"load_U": jnp.array([[3.0, 1.0]])}, {}, Config()))
  0.25
  """
  return jnp.sum(routing.squared_variation(sums_L["load_U"]))


def _threshold(logit_NU, K, k, cfg):
  """What the logit of each id must exceed to be among the k highest; k may be traced, at most K."""
  best_NK = routing.take(logit_NU, routing.top_k(logit_NU, min(K + 1, logit_NU.shape[1])))
  best_NK = jnp.pad(best_NK, ((0, 0), (0, K + 1 - best_NK.shape[1])), constant_values=NEVER)
  place = lambda i: jnp.take(best_NK, i, axis=1, mode="clip")[:, None]
  if cfg.threshold == "all":
    return place(k - 1)
  return jnp.where(logit_NU >= place(k - 1), place(k), place(k - 1))
