"""Token by token: the k highest of one router or of the other, sigmoids of the first as gates."""

from moejax.routers.stable import Config
from oracle import linear_logits, sigmoid, token_by_token

CASES = (Config(), Config(k=2), Config(routed_by="light"), Config(k=3, routed_by="light"))


logits = linear_logits


def route(logit_NU, inputs, cfg):
  score_NU = logit_NU if cfg.routed_by == "learned" else inputs.extras["light_NU"]
  return token_by_token(score_NU, inputs, cfg.k, lambda n, chosen: sigmoid(logit_NU[n, chosen]))
