"""Token by token: the k highest of probability plus bias, and their probabilities."""

import numpy as np

from moejax.routers.biased_topk import Config
from oracle import linear_logits, softmax, token_by_token

CASES = (Config(), Config(k=3, scale=6.0))


logits = linear_logits


def route(logit_NU, inputs, cfg):
  prob_NU = np.array([softmax(logit_U) for logit_U in logit_NU])
  gates = lambda n, chosen: cfg.scale * prob_NU[n, chosen]
  return token_by_token(prob_NU + inputs.state["bias_U"], inputs, cfg.k, gates)
