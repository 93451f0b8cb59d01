"""The share of choices an id has, times its mean score, over all ids, in every scope."""

import numpy as np

from moejax.balance.switch import Config
from oracle import sigmoid, softmax

CASES = (
  *(Config(scope=s) for s in ("micro_batch", "step", "sequence", "group", "pooled")),
  Config(scope="sequence", score="sigmoid"),
  Config(score="chosen"),
)


def loss(now, before, cfg):
  """`now` has what one micro-batch saw in each layer, `before` a list of earlier ones."""
  if cfg.scope == "pooled":
    tokens = [token for seen in now for token in seen.tokens()]
    choices = sum(len(token.ids) for token in tokens) / len(tokens)
    return choices * value(tokens, tokens, now[0].ids, cfg)
  total = 0.0
  for i, seen in enumerate(now):
    tokens = list(seen.tokens())
    if cfg.scope in ("sequence", "group"):
      place = "sequence" if cfg.scope == "sequence" else "group"
      parts = sorted({getattr(token, place) for token in tokens})
      parts = [[token for token in tokens if getattr(token, place) == part] for part in parts]
      total += np.mean([value(part, part, seen.ids, cfg) for part in parts])
    else:
      earlier = [token for layers in before for token in layers[i].tokens()]
      counted = tokens + earlier if cfg.scope == "step" else tokens
      total += value(counted, tokens, seen.ids, cfg)
  return total


def value(counted, scored, ids, cfg):
  """Shares over the choices of `counted`, mean scores over the tokens in `scored`."""
  everyone = [e for token in counted for e in token.ids]
  total = 0.0
  for e in range(ids):
    share = everyone.count(e) / max(len(everyone), 1)
    total += share * np.mean([score(token, cfg)[e] for token in scored])
  return ids * total


def score(token, cfg):
  powers = {"softmax": softmax, "sigmoid": sigmoid, "chosen": np.exp}[cfg.score](token.logits)
  if cfg.score == "chosen":
    powers = np.array([power if e in token.ids else 0 for e, power in enumerate(powers)])
  return powers / powers.sum()


def even(cfg, layers, ids, k):
  """Every id has as many choices, and every logit of a token stands once at every id."""
  return k if cfg.scope == "pooled" else layers


def collapsed(cfg, layers, ids, k):
  """All tokens choose the same k ids and believe in them equally: logits of 30, others of -30."""
  return ids if cfg.scope == "pooled" else layers * ids / k
