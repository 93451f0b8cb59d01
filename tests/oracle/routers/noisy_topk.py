"""Token by token, without noise: the k most probable, and a softmax over them or over all."""

from moejax.routers.noisy_topk import Config
from oracle import linear_logits, most_probable, softmax, token_by_token

CASES = (Config(), Config(k=3, noise="fixed", softmax="all"), Config(k=1, softmax="all"))


logits = linear_logits


def route(logit_NU, inputs, cfg):
  if cfg.softmax == "all":
    return most_probable(logit_NU, inputs, cfg.k, renormalise=False)
  return token_by_token(logit_NU, inputs, cfg.k, lambda n, chosen: softmax(logit_NU[n, chosen]))
