"""Evaluation on held-out documents: loss, perplexity, bits per byte; loss and experts by domain."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import runs, sums, tree
from moejax.layers import moe
from moejax.train import objective
from moejax.train.metrics import moe_layers

BY_LABEL = "label_count_YU"


def make(model, precision, bytes_V, labels: int):
  """evaluate(variables, batch, knobs) -> sums by label of the target: loss, tokens, bytes.

  `layers` of it has the choices by label of every MoE layer.
  """
  bytes_V = jnp.asarray(bytes_V, jnp.float32)

  def evaluate(variables, batch, knobs):
    label_N, next_N = batch["label_BT"][:, :-1].ravel(), batch["label_BT"][:, 1:].ravel()
    fields = {"label_N": label_N, "labels": labels, "taps": (BY_LABEL,), "knobs": knobs}
    out = objective.cross_entropy(model, variables, batch, precision, **fields)
    _, loss_N, valid_N, layers = out
    by_label = lambda value_N: jnp.zeros(labels).at[next_N].add(value_N * valid_N)
    size_N = bytes_V[batch["token_BT"][:, 1:].ravel()]
    found = {"loss": loss_N, "tokens": jnp.ones_like(loss_N), "bytes": size_N}
    for path, _ in runs.find(model.cfg.layers, moe.Config):
      layers = _only(layers, path)
    return {**{name: by_label(value_N) for name, value_N in found.items()}, "layers": layers}

  return evaluate


def total(evaluate, variables, batches, knobs) -> dict | None:
  """The sums over batches, on the host; None if there are none."""
  found = None
  for batch in batches:
    one = evaluate(variables, batch, knobs)
    found = one if found is None else sums.add(found, one)
  return jax.device_get(found)


def numbers(found: dict) -> dict:
  """What is logged of the sums of an evaluation.

  >>> numbers({"loss": 2 * np.log(2), "tokens": 2, "bytes": 4})["bits_per_byte"]
  0.5
  """
  nats, tokens, size = (float(np.sum(found[name])) for name in ("loss", "tokens", "bytes"))
  loss = nats / max(tokens, 1)
  return {
    "loss": loss,
    "perplexity": float(np.exp(min(loss, 700.0))),
    "bits_per_byte": float(nats / np.log(2) / max(size, 1)),
    "tokens": int(tokens),
  }


def domains(found: dict, labels: tuple, model_cfg) -> dict:
  """What is logged of an evaluation by domain; labels that no token has are left out."""
  seen = [i for i, n in enumerate(found["tokens"]) if n > 0]
  by_layer = tree.unstack(found["layers"], model_cfg)
  layers = {}
  for name, path in moe_layers(model_cfg):
    count_YU = np.asarray(tree.at(by_layer[name], path)[f"taps/{BY_LABEL}"], np.float64)[seen]
    layers[name] = (count_YU / np.maximum(count_YU.sum(1, keepdims=True), 1)).round(5).tolist()
  return {
    "labels": [labels[i] for i in seen],
    "tokens": [int(found["tokens"][i]) for i in seen],
    "loss": [float(found["loss"][i] / found["tokens"][i]) for i in seen],
    "layers": layers,
  }


def _only(layers, path):
  """The sums with only the counts by label kept at one place."""
  here = tree.at(layers, path)
  return tree.put(layers, path, {k: v for k, v in here.items() if k.endswith(BY_LABEL)})
