"""Evaluation on held-out documents: loss, perplexity, bits per byte; loss and experts by domain."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import runs, sums, tree
from moejax.layers import moe
from moejax.train import objective
from moejax.train.metrics import moe_layers

BY_LABEL = "label_count_YU"


def make(model, precision, bytes_V):
  """evaluate(params, model_state, batch) -> sums: loss, tokens and bytes of the targets."""
  bytes_V = jnp.asarray(bytes_V, jnp.float32)

  def evaluate(params, model_state, batch):
    variables = {"params": params, **model_state}
    task, _, valid_N, _ = objective.cross_entropy(model, variables, batch, precision)
    size_N = bytes_V[batch["token_BT"][:, 1:].ravel()]
    return {"loss": task, "tokens": valid_N.sum(), "bytes": size_N @ valid_N}

  return evaluate


def make_by_domain(model, precision, labels: int):
  """evaluate(params, model_state, batch) -> sums by label, and choices by label of every layer."""

  def evaluate(params, model_state, batch):
    label_N = batch["label_BT"][:, :-1].ravel()
    fields = {"label_N": label_N, "labels": labels, "taps": (BY_LABEL,)}
    variables = {"params": params, **model_state}
    out = objective.cross_entropy(model, variables, batch, precision, **fields)
    _, loss_N, valid_N, layers = out
    by_label = lambda value_N: jnp.zeros(labels).at[label_N].add(value_N * valid_N)
    found = {"loss": by_label(loss_N), "tokens": by_label(jnp.ones_like(loss_N))}
    for path, _ in runs.find(model.cfg.layers, moe.Config):
      layers = _only(layers, path)
    return {**found, "layers": layers}

  return evaluate


def total(evaluate, params, model_state, batches) -> dict:
  """The sums over batches, on the host."""
  found = None
  for batch in batches:
    one = evaluate(params, model_state, batch)
    found = one if found is None else sums.add(found, one)
  return jax.device_get(found)


def numbers(found: dict) -> dict:
  """What is logged of the sums of an evaluation.

  >>> numbers({"loss": 2 * np.log(2), "tokens": 2, "bytes": 4})["bits_per_byte"]
  0.5
  """
  loss = float(found["loss"]) / max(float(found["tokens"]), 1)
  bits = float(found["loss"]) / np.log(2) / max(float(found["bytes"]), 1)
  perplexity = float(np.exp(min(loss, 700.0)))
  tokens = int(found["tokens"])
  return {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits, "tokens": tokens}


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
