"""Do routers that compare a token with later ones predict as well when those are not there yet?"""

import contextlib
import itertools

import numpy as np

from configs.studies.lookahead import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import verdicts
from moejax.lab import scoring
from moejax.train import restore

CLAIM = (
  "Expert choice and Soft MoE predict held-out tokens worse once the later tokens of the sequence"
  " are absent, while top-2, BASE and Sinkhorn lose less than 0.01 nats; and without later tokens"
  " neither of the two is better than top-2."
)
NOTHING = 0.01  # nats per token
EVERY, BATCHES = 12, 4  # tokens between those that are predicted; held-out batches
SHOWN = ("lost", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run and its last checkpoint on held-out text."""
  whole, alone = both(run.path)
  return {
    "loss": run.last("loss", "eval"),
    "within": whole,
    "alone": alone,
    "lost": alone - whole,
    "load_entropy": run.layer_mean("load_entropy"),
  }


def both(path) -> tuple[float, float]:
  """Mean loss of the same tokens (inside their sequence, at the end of what came before them)."""
  trained = restore.load(path)
  score, parts = scoring.Score(trained, taps=()), []
  T, size = trained.cfg.data.seq_len, trained.cfg.train.batch_size
  with contextlib.closing(trained.corpus.batches("validation", size, epochs=1)) as reading:
    for batch in itertools.islice(reading, BATCHES):
      whole = score(batch)
      for t in range(EVERY - 1, T, EVERY):
        alone = score({**batch, "segment_BT": until(batch["segment_BT"], t)})
        pair_2B = np.stack([found["loss_BT"][:, t] for found in (whole, alone)])
        parts.append(pair_2B[:, whole["valid_BT"][:, t].astype(bool)])
  within, alone = np.concatenate(parts, axis=1).astype(float).mean(1)
  return float(within), float(alone)


def until(segment_BT, t: int) -> np.ndarray:
  """Segments of which the tokens after t are padding.

  >>> until(np.array([[1, 1, 2]]), 1).tolist()
  [[1, 1, 0]]
  """
  return np.where(np.arange(segment_BT.shape[1]) <= t, segment_BT, 0)


def verdict(table) -> str:
  """'holds' if all parts do; 'fails' if one of them fails."""
  parts, shown = [], []
  for arm in ARMS:
    lost = table.values(arm, "lost")
    if arm in ("expert_choice", "soft"):
      parts.append(
        "holds" if lost.min() > NOTHING else "unclear" if lost.max() > NOTHING else "fails"
      )
      better = verdicts.lower(table, "alone", arm, than="topk").startswith("holds")
      parts.append("fails" if better else "holds")
    else:
      parts.append("holds" if np.abs(lost).max() < NOTHING else "fails")
    within = table.values(arm, "within").mean()
    shown.append(f"{arm} {within:.4f} within, {lost.mean():+.4f} alone")
  return f"{verdicts.weakest(*parts)}: {'; '.join(shown)}"
