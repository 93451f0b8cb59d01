"""Memory layers by brute force: every one of the n * n slots is scored, and all of them sorted."""

import numpy as np

from oracle import best


def halves(router, x_D, head, normalise=lambda half, query_A: query_A):
  """The two halves of a head's query."""
  queries = (x_D @ np.asarray(router[f"query{half}_DHA"])[:, head] for half in "12")
  return [normalise(half, query_A) for half, query_A in zip("12", queries, strict=True)]


def slots(router, x_D, head, cfg):
  """(slot, score) of the k highest sums over all pairs of keys."""
  queries, n = halves(router, x_D, head), cfg.keys
  score_P = [
    router["key1_HQA"][head, i] @ queries[0] + router["key2_HQA"][head, j] @ queries[1]
    for i in range(n)
    for j in range(n)
  ]
  return [(slot, score_P[slot]) for slot in best(score_P, cfg.k)]


def rms_norm(x_A, scale_A):
  return x_A / np.sqrt(np.mean(x_A**2) + 1e-6) * scale_A
