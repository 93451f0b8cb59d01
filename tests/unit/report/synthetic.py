"""Run directories that no run wrote: plausible numbers to draw, clearly made up."""

import json

import numpy as np

LAYERS, EXPERTS, LABELS = ("layer_001", "layer_003"), 8, ("ast", "email", "json", "xml")


def lines(steps=200, every=5, layers=LAYERS, experts=EXPERTS, labels=LABELS, controller=True):
  """The rows of a metrics.jsonl."""
  rng = np.random.default_rng(0)
  rows = [{"kind": "stage", "stage": 0, "step": 0, "name": "train"}]
  tilt = {name: rng.normal(size=experts) for name in layers}
  for step in range(every, steps + 1, every):
    far = step / steps
    loss = 2.9 + 4.6 * np.exp(-6 * far) + 0.06 * rng.normal()
    detail = {}
    for depth, name in enumerate(layers):
      load = np.exp(tilt[name] * (1.4 - far) + 0.15 * rng.normal(size=experts))
      load /= load.sum()
      detail[name] = {
        "load_entropy": float(-(load * np.log(load)).sum() / np.log(experts)),
        "max_vio": float(load.max() * experts - 1), "dead": 0,
        "drop_fraction": 0.0, "margin": 0.2 + 0.5 * far + 0.1 * depth,
        "logit_norm": 0.8 + far + 0.2 * depth, "load": load.tolist(),
      }  # fmt: skip
      if controller:
        detail[name]["bias_max"] = 0.02 * step**0.5 * (1 + 0.3 * depth)
    rows.append({
      "kind": "train", "stage": 0, "step": step, "loss": loss, "balance": 0.011 + 0.01 * (1 - far),
      "lr": 3e-3 * min(1, 10 * far) * (0.55 + 0.45 * np.cos(np.pi * far)), "skipped": 0,
      "grad_norm": float(np.exp(0.3 * rng.normal() - 2 * far)), "tokens": step * 4096,
      "tokens_per_s": 9000.0 if step > every else 900.0, "step_ms": 455.0, "mfu": 0.41,
      "flops": step * 4.1e10, "time": 0.46 * step + 4, "layers": detail,
    })  # fmt: skip
    if step % (10 * every) == 0:
      held = loss + 0.12
      rows.append({"kind": "eval", "stage": 0, "step": step, "loss": held, "tokens": 51200,
                   "perplexity": float(np.exp(held)), "bits_per_byte": held / 2.6})  # fmt: skip
  share = lambda: rng.dirichlet(np.full(experts, 1.5), size=len(labels)).tolist()
  if labels:
    rows.append({
      "kind": "domains", "step": steps, "labels": list(labels),
      "layers": {name: share() for name in layers},
      "tokens": [int(9000 / (y + 1)) for y in range(len(labels))],
      "loss": [2.7 + 0.2 * y for y in range(len(labels))],
    })  # fmt: skip
  return [*rows, {"kind": "done", "step": steps, "time": 0.46 * steps + 6}]


def directory(path, rows=None, name="made_up"):
  """A run directory under `path` with these lines and everything else that a run leaves."""
  path = path / name
  path.mkdir(parents=True)
  rows = lines() if rows is None else rows
  (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  router = {"name": "topk", "k": 4, "renormalise": True}
  moe = {"name": "moe", "num_experts": EXPERTS, "hidden": 64, "router": router}
  ffns = [{"name": "mlp", "hidden": 256}, moe, moe, moe]
  layers = [{"name": "serial", "ffn": ffn} for ffn in ffns]
  config = {
    "model": {"name": "decoder", "vocab": 2048, "width": 128, "layers": layers},
    "data": {"name": "text", "source": "stdlib_text", "seq_len": 128, "validation": 0.05},
    "train": {"name": "step", "steps": 200, "batch_size": 32},
    "stages": [],
    "knobs": {},
  }  # fmt: skip
  (path / "config.json").write_text(json.dumps(config))
  environment = {
    "versions": {"jax": "0.10.2", "python": "3.11.2"}, "devices": ["made up"], "platform": "cpu",
    "git": "0" * 12, "peak": {"name": "measured matmul", "flops": 9.1e10},
    "parameters": {"total": 4_200_000, "active": 1_600_000}, "flops_per_token": 1.0e7,
  }  # fmt: skip
  (path / "environment.json").write_text(json.dumps(environment))
  (path / "sample.txt").write_text("def made_up(self):\n  return <not a real sample> & more\n")
  return path
