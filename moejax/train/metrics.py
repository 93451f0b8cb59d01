"""From sums of layers to numbers that are read: shares, entropies and violations per layer."""

import jax
import numpy as np

from moejax.core import runs, tree
from moejax.layers import moe
from moejax.train import placement


def of_step(layer_sums: dict, model_state: dict, model_cfg, owners: int = 1) -> dict:
  """{"layers": {layer_NNN: numbers of its router}}, and the same for "memories" where there are.

  `owners` are the parts into which the slots of experts are cut.
  """
  sums = tree.unstack(jax.device_get(layer_sums), model_cfg)
  state = tree.unstack(jax.device_get(model_state.get("router_state", {})), model_cfg)
  layers = {
    name: of_layer(tree.at(sums, (name, *path)), tree.at(state, (name, *path, "router")))
    for name, path in moe_layers(model_cfg)
  }
  tables = tree.unstack(jax.device_get(model_state.get("placement", {})), model_cfg)
  for name, path in moe_layers(model_cfg) if owners > 1 else ():
    cfg = dict(runs.sections(model_cfg.layers[int(name[-3:])]))[path]
    load_E = tree.at(sums, (name, *path))["count_U"][: cfg.num_experts]
    slot_ER = tree.at(tables, (name, *path))["slot_ER"]
    shape = (owners, cfg.stored or cfg.num_experts)
    layers[name]["straggler"] = placement.straggler(load_E, slot_ER, *shape)
  memories = {
    name: of_memory(tree.at(sums, (name, *path))["count_P"])
    for i, layer in enumerate(model_cfg.layers)
    for path, _ in runs.sections(layer)
    for name in [f"layer_{i:03d}"]
    if "count_P" in tree.at(sums, (name, *path))
  }
  return {"layers": layers, **({"memories": memories} if memories else {})}


def of_memory(count_P) -> dict:
  """What is logged of one memory layer: the share of slots chosen, how far from even the choices.

  >>> of_memory(np.array([2.0, 2.0, 0.0, 0.0]))
  {'hit': 0.5, 'kl': 0.6931}
  """
  load_P = np.asarray(count_P, np.float64) / max(np.sum(count_P), 1)
  kl = np.log(len(load_P)) + np.sum(load_P * np.log(np.where(load_P > 0, load_P, 1)))
  return {"hit": round(float(np.mean(load_P > 0)), 6), "kl": round(float(kl), 4)}


def moe_layers(model_cfg) -> list[tuple[str, tuple]]:
  """(layer_NNN, path inside it) of every MoE layer."""
  return [
    (f"layer_{i:03d}", path)
    for i, layer in enumerate(model_cfg.layers)
    for path, cfg in runs.sections(layer)
    if isinstance(cfg, moe.Config)
  ]


def of_layer(sums: dict, state: dict | None = None) -> dict:
  """What is logged of one MoE layer.

  >>> one = of_layer({"count_U": np.array([3.0, 1.0]), "tokens": 4.0, "margin": 2.0,
  ...                 "logit_norm": 8.0})
  >>> one["load"], one["max_vio"], one["dead"], one["margin"], round(one["load_entropy"], 3)
  ([0.75, 0.25], 0.5, 0, 0.5, 0.811)
  """
  count_U = np.asarray(sums["count_U"], np.float64)
  load_U = count_U / max(count_U.sum(), 1)
  tokens = max(float(sums["tokens"]), 1)
  entropy = -np.sum(load_U * np.log(np.where(load_U > 0, load_U, 1))) / np.log(max(len(load_U), 2))
  out = {
    "load_entropy": float(entropy),
    "max_vio": float(load_U.max() * len(load_U) - 1),
    "dead": int(np.sum(count_U == 0)),
    "drop_fraction": float(sums.get("capacity/dropped", 0))
    / max(float(sums.get("capacity/choices", 0)), 1),
    "margin": float(sums["margin"]) / tokens,
    "logit_norm": float(sums["logit_norm"]) / tokens,
    "choices": float(count_U.sum()) / tokens,
    "load": [round(float(share), 6) for share in load_U],
  }
  if "skip/skipped" in sums:
    out["skip_fraction"] = float(sums["skip/skipped"]) / max(float(sums["skip/choices"]), 1)
  spills = [float(value) for key, value in sums.items() if key.endswith("/spilled")]
  if spills:
    out["spilled"] = sum(spills)
  if state and "bias_U" in state:
    out["bias_max"] = float(np.abs(state["bias_U"]).max())
  return out
