"""What a trained run chooses on held-out text, token by token, and what it does without."""

import contextlib
import itertools
import typing

import numpy as np

from moejax.lab import scoring
from moejax.train import restore


class Choices(typing.NamedTuple):
  loss_N: np.ndarray  # of the next token
  valid_N: np.ndarray  # whether there is a next token
  expert_LNK: np.ndarray  # ids, -1 for an unused choice; virtual ones from `experts` on
  experts: int

  def real_LN(self) -> np.ndarray:
    """How many experts work on each token.

    >>> Choices(np.zeros(1), np.ones(1), np.array([[[3, -1, 8]]]), experts=8).real_LN().tolist()
    [[1]]
    """
    return ((self.expert_LNK >= 0) & (self.expert_LNK < self.experts)).sum(2)

  def numbers(self) -> dict:
    """Columns of a study: experts of a token, and of those easier and harder than the median."""
    real_LN, loss_N = self.real_LN()[:, self.valid_N], self.loss_N[self.valid_N]
    hard_N = loss_N > np.median(loss_N)
    return {
      "experts": float(real_LN.mean()),
      "experts_spread": float(real_LN.std(1).mean()),
      "experts_easy": float(real_LN[:, ~hard_N].mean()),
      "experts_hard": float(real_LN[:, hard_N].mean()),
    }


def choices(path, batches: int = 4) -> Choices:
  """Of the run in a folder, whose MoE layers are alike, on the first batches of held-out text."""
  trained = restore.load(path)
  score = scoring.Score(trained, taps=("expert_NK",))
  size, parts = trained.cfg.train.batch_size, []
  with contextlib.closing(trained.corpus.batches("validation", size, epochs=1)) as reading:
    for found in map(score, itertools.islice(reading, batches)):
      expert_LNK = np.stack([layer["expert_NK"] for layer in found["layers"].values()])
      parts.append((found["loss_BT"].ravel(), found["valid_BT"].ravel(), expert_LNK))
  loss, valid, expert = zip(*parts, strict=True)
  experts = trained.cfg.model.layers[0].ffn.num_experts
  return Choices(
    np.concatenate(loss), np.concatenate(valid), np.concatenate(expert, axis=1), experts
  )


def without_the_best(path, parts, batches: int = 2) -> list[float]:
  """The loss of the run in a folder where every token has to do without its best experts.

  For each of `parts`: in every layer, that part of the experts, those most probable to the token,
  are out of its reach, and it takes the next ones with their own gates. The layers are forced from
  below, so that each decides on what the layers below it gave. Its MoE layers are alike and have
  nothing but a k, an order of logits, and experts. A part of 0 is the run itself.
  """
  trained = restore.load(path)
  score = scoring.Score(trained, taps=("expert_NK", "logit_NU"))
  ffn = trained.cfg.model.layers[0].ffn
  reading = trained.corpus.batches("validation", trained.cfg.train.batch_size, epochs=1)
  with contextlib.closing(reading):
    found = list(itertools.islice(reading, batches))
  return [
    _loss_without(score, found, round(part * ffn.num_experts), ffn.router.k) for part in parts
  ]


def _loss_without(score, found, best: int, k: int) -> float:
  total, count = 0.0, 0
  for batch in found:
    forced_BTLK = scoring.free(score.run, len(batch["token_BT"]), k)
    for i in range(forced_BTLK.shape[2]):
      seen = score({**batch, "forced_BTLK": forced_BTLK})
      logit_NU = seen["layers"][f"layer_{i:03d}"]["logit_NU"]
      next_NK = np.argsort(-logit_NU, axis=1, kind="stable")[:, best : best + k]
      forced_BTLK[:, :, i] = next_NK.reshape(*forced_BTLK.shape[:2], k)
    seen = score({**batch, "forced_BTLK": forced_BTLK})
    total += float(np.sum(seen["loss_BT"], where=seen["valid_BT"], dtype=np.float64))
    count += int(seen["valid_BT"].sum())
  return total / count
