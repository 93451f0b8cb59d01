"""Routing as its definition, in loops of numpy: what every implementation must match."""

import numpy as np

from pallas_kernels.routing.rule import Rule


def route(logit_NE, bias_E, valid_N, rule: Rule):
  """(expert_NK, gate_NK, place_NK, size_E); of a token that is not valid -1, 0 and M = N * K.

  >>> logit_NE, all_N = np.log([[.2, .8], [.4, .6]]), np.ones(2, bool)
  >>> expert_NK, gate_NK, place_NK, size_E = route(logit_NE, np.zeros(2), all_N, Rule(k=1))
  >>> expert_NK.tolist(), gate_NK.tolist(), place_NK.tolist(), size_E.tolist()
  ([[1], [1]], [[1.0], [1.0]], [[0], [1]], [0, 2])
  """
  (N, E), K = logit_NE.shape, rule.k
  expert_NK, gate_NK = np.full((N, K), -1, np.int32), np.zeros((N, K), logit_NE.dtype)
  place_NK, size_E = np.full((N, K), N * K, np.int32), np.zeros(E, np.int32)
  for n in np.flatnonzero(valid_N):
    score_E = _scores(logit_NE[n], rule.score)
    expert_NK[n] = _best(_limited(score_E + bias_E, rule), K)
    gate_K = score_E[expert_NK[n]]
    if rule.renormalise and gate_K.sum() != 0:
      gate_K = gate_K / gate_K.sum()
    gate_NK[n] = rule.scale * gate_K
    size_E[expert_NK[n]] += 1
  row_E = np.cumsum(size_E) - size_E
  for n in np.flatnonzero(valid_N):
    for k in range(K):
      place_NK[n, k] = row_E[expert_NK[n, k]]
      row_E[expert_NK[n, k]] += 1
  return expert_NK, gate_NK, place_NK, size_E


def _scores(logit_E, score):
  if score == "none":
    return logit_E
  if score == "sigmoid":
    return 1 / (1 + np.exp(-logit_E))
  power_E = np.exp(logit_E - logit_E.max())
  return power_E / power_E.sum()


def _limited(score_E, rule):
  if rule.groups == 1:
    return score_E
  score_GE = score_E.reshape(rule.groups, -1)
  group_G = np.array([np.sort(row_E)[-rule.best :].sum() for row_E in score_GE])
  kept = _best(group_G, rule.keep)
  return np.where(np.isin(np.arange(rule.groups), kept)[:, None], score_GE, -np.inf).ravel()


def _best(score_E, k):
  """The lower id first among equals."""
  return np.argsort(-score_E, kind="stable")[:k]
