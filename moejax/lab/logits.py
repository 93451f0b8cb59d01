"""Router logits to replay: recorded from a run, read from a file, or drawn when asked for by name.

A file is an .npz with logit_SNU (S batches, N tokens, U ids), valid_SN (False for padding) and k,
how many ids a token chose.
"""

import contextlib
import itertools
import pathlib
import typing
import zipfile

import numpy as np

from moejax.core.plugin import Wrong

TAP = "logit_NU"


class Logits(typing.NamedTuple):
  logit_SNU: np.ndarray
  valid_SN: np.ndarray
  k: int
  source: str


def open(source: str, layer: str | None = None, batches: int = 32) -> Logits:
  """Of a run directory, of a file, or `drift`."""
  path = pathlib.Path(source)
  if path.is_dir():
    return record(path, layer, batches)
  return drift(batches) if source == "drift" else read(path)


def drift(batches: int = 32, tokens: int = 512, ids: int = 16, k: int = 2, seed: int = 0) -> Logits:
  """Drawn: some ids are liked more than others, and which ones these are changes slowly.

  >>> drift(3, tokens=4, ids=8).logit_SNU.shape
  (3, 4, 8)
  """
  draw = np.random.default_rng(seed)
  start_U, end_U = draw.normal(size=(2, ids))
  at_S1 = np.linspace(0, 1, batches)[:, None]
  mean_SU = (1 - at_S1) * start_U + at_S1 * end_U
  logit_SNU = mean_SU[:, None] + draw.normal(size=(batches, tokens, ids))
  valid_SN = np.ones((batches, tokens), bool)
  return Logits(logit_SNU.astype(np.float32), valid_SN, k, f"a drift drawn with seed {seed}")


def record(workdir, layer: str | None = None, batches: int = 32, step: int | None = None) -> Logits:
  """The logits of one layer on the first held-out batches, from a checkpoint of a run."""
  from moejax.lab import scoring  # noqa: PLC0415  training is loaded only where a run is read
  from moejax.train import metrics, restore  # noqa: PLC0415

  run = restore.load(workdir, step)
  layers = dict(metrics.moe_layers(run.cfg.model))
  layer = layer or next(iter(layers), "layer_000")
  if layer not in layers:
    raise Wrong(f"lab: {layer!r} is no MoE layer of this run; use one of {', '.join(layers)}.")
  score = scoring.Score(run, taps=(TAP,))
  valid_N = lambda batch: (np.asarray(batch["segment_BT"])[:, :-1] > 0).ravel()
  with contextlib.closing(run.corpus.batches("validation", run.cfg.train.batch_size)) as reader:
    some = itertools.islice(reader, batches)
    found = [(score(batch)["layers"][layer][TAP], valid_N(batch)) for batch in some]
  if not found:
    raise Wrong(f"lab: {str(workdir)!r} has no held-out text; raise data.validation in its config.")
  logit_SNU, valid_SN = (np.stack(part) for part in zip(*found, strict=True))
  router = tree_section(run.cfg.model, layer, layers[layer]).router
  where = f"{layer} of {pathlib.Path(workdir).name}, step {run.step}"
  return Logits(logit_SNU, valid_SN, int(getattr(router, "k", 2)), where)


def tree_section(model_cfg, layer: str, path: tuple):
  """The Config of one MoE layer."""
  cfg = model_cfg.layers[int(layer.rpartition("_")[2])]
  for name in path:
    cfg = getattr(cfg, name)
  return cfg


def write(logits: Logits, path) -> None:
  """To a file that read() reads."""
  np.savez_compressed(path, **logits._asdict())


def read(path) -> Logits:
  """From a file."""
  try:
    with np.load(path) as found:
      logit_SNU = found["logit_SNU"]
      valid_SN = found["valid_SN"] if "valid_SN" in found else np.ones(logit_SNU.shape[:2], bool)
      k = int(found["k"]) if "k" in found else 2
  except (OSError, KeyError, ValueError, zipfile.BadZipFile) as reason:
    raise Wrong(
      f"lab: {str(path)!r} holds no logits ({str(reason).splitlines()[0]}); give the --workdir of a"
      " run, an .npz with logit_SNU, or the word 'drift' for drawn ones."
    ) from reason
  if logit_SNU.ndim != 3 or valid_SN.shape != logit_SNU.shape[:2]:
    raise Wrong(
      f"lab: {str(path)!r} has logits of {logit_SNU.shape} and validity of {valid_SN.shape}; they"
      " must be [batches, tokens, ids] and [batches, tokens]."
    )
  return Logits(logit_SNU, valid_SN, k, pathlib.Path(path).name)
