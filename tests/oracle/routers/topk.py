"""Token by token: the k most probable, and their probabilities."""

from moejax.routers.topk import Config
from oracle import linear_logits, most_probable, softmax, token_by_token

CASES = (
  Config(),
  Config(k=1, renormalise=False),
  Config(k=3, renormalise=False, scale=2.5),
  Config(k=3, softmax="chosen"),
  Config(k=4, scale=0.5),
)


logits = linear_logits


def route(logit_NU, inputs, cfg):
  if cfg.softmax == "chosen":
    gates = lambda n, chosen: cfg.scale * softmax(logit_NU[n, chosen])
    return token_by_token(logit_NU, inputs, cfg.k, gates)
  return cfg.scale * most_probable(logit_NU, inputs, cfg.k, cfg.renormalise)
