"""The balance laboratory: recorded router logits through any controller, without training.

Logits stay what they were, so that only the controller moves: each control step routes one recorded
batch with the biases so far and hands its counts to the rule, all speeds side by side. Reported are

  settles   the first step from which on MaxVio (largest load over the mean load, less 1), as the
            mean of ten steps, stays within the bound; a speed is stable where there is one
  MaxVio    its mean over the last tenth of the steps
  regret    the mean score that a token loses against the choice without biases, over that tenth

What it does not show: a router that is trained moves its logits, too.
"""

import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import plugin, sums
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.lab import logits as recorded
from moejax.layers import moe

LAST = 0.1  # the part of the steps that final numbers are of


def rules() -> dict:
  """name -> Config of every rule of balance that moves the bias of a router."""
  found = {name: plugin.load("balance", name) for name in plugin.names("balance")}
  found = {name: m.Config() for name, m in found.items() if hasattr(m, "update")}
  return {name: cfg for name, cfg in found.items() if hasattr(cfg, "speed")}


def router(name: str, k: int):
  """The Config of a router with k choices."""
  config = plugin.load("routers", name).Config
  has_k = "k" in {field.name for field in dataclasses.fields(config)}
  return config(k=k) if has_k else config()


def inputs(valid_N, state, ids: int) -> RouterInputs:
  """What a router sees of a recorded batch."""
  return RouterInputs(valid_N=valid_N, state=state, num_experts=ids, groups=1, seq_len=len(valid_N))


def score(logit_NU, plan, cfg) -> jax.Array:
  """The mean over tokens of the scores of their choices, neither renormalised nor scaled."""
  plain = {"renormalise": False, "scale": 1.0}
  fields = {field.name for field in dataclasses.fields(cfg)}
  cfg = dataclasses.replace(cfg, **{name: v for name, v in plain.items() if name in fields})
  gate_NK = plugin.module(cfg).weigh(logit_NU, plan.expert_NK, None, cfg)
  used_N = (plan.expert_NK >= 0).any(1)
  return gate_NK.sum() / jnp.maximum(used_N.sum(), 1)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def replay(logit_SNU, valid_SN, speed_V, router, rule, steps: int) -> dict:
  """{max_vio, regret} of [speeds, steps]: batches in order, and back again, as often as needed."""
  S, _, U = logit_SNU.shape
  module = plugin.module(rule)
  own = module.init_state(rule, U) if hasattr(module, "init_state") else {}
  start = {"bias_U": jnp.zeros(U), **own}

  def one(speed):
    def step(state, s):
      at = jnp.minimum(s % (2 * S), 2 * S - 1 - s % (2 * S))
      logit_NU, valid_N = logit_SNU[at], valid_SN[at]
      route = lambda state: moe.decide(logit_NU, inputs(valid_N, state, U), router)
      plan, free = route(state), route({**state, "bias_U": jnp.zeros(U)})
      count_U = plan.count_U()
      seen = {"count_U": count_U, "tokens": valid_N.sum(), "expert_U": jnp.ones(U)}
      if hasattr(module, "observe"):
        found = module.observe(plan, logit_NU, inputs(valid_N, state, U), rule)
        seen = sums.seen_by("rule", seen | sums.under("rule", found))
      new = module.update({}, state, seen, {"bias_speed": speed}, rule)
      max_vio = count_U.max() / jnp.maximum(count_U.mean(), 1e-9) - 1
      regret = score(logit_NU, free, router) - score(logit_NU, plan, router)
      return new, {"max_vio": max_vio, "regret": regret}

    return jax.lax.scan(step, start, jnp.arange(steps))[1]

  return jax.vmap(one)(speed_V)


def settled(max_vio_S, bound: float, window: int = 10) -> int | None:
  """The first step from which on the mean of every `window` steps is within the bound.

  >>> max_vio_S = np.array([2.0, 0.1, 0.9, 0.1, 0.2])
  >>> settled(max_vio_S, 0.5, window=1), settled(max_vio_S, 0.5, window=2)
  (3, 1)
  >>> settled(max_vio_S[:3], 0.5, window=1) is None
  True
  """
  window = min(window, len(max_vio_S))
  mean_S = np.convolve(max_vio_S, np.full(window, 1 / window), "valid")
  outside = np.flatnonzero(~(mean_S <= bound))
  first = int(outside[-1]) + 1 if len(outside) else 0
  return first if first < len(mean_S) else None


def grid(text: str) -> np.ndarray:
  """Speeds from one to another, equally far apart by factor.

  >>> grid("0.01:1:3").tolist()
  [0.01, 0.1, 1.0]
  """
  try:
    first, last, count = text.split(":")
    return np.geomspace(float(first), float(last), int(count))
  except ValueError as reason:
    raise Wrong(
      f"lab: speeds {text!r} are no grid; write first:last:count, as 1e-4:1:13."
    ) from reason


def measure(logits: recorded.Logits, router_cfg, name, rule, speeds, steps, bound) -> dict:
  """One controller: numbers for each speed, its curves, and control steps per second."""
  arguments = (jnp.asarray(logits.logit_SNU), jnp.asarray(logits.valid_SN), jnp.asarray(speeds))
  how = (router_cfg, rule, steps)
  run = replay.lower(*arguments, *how).compile()
  start = time.perf_counter()
  found = jax.device_get(run(*arguments))
  seconds = time.perf_counter() - start
  last = max(1, round(LAST * steps))
  rows = [
    {
      "speed": float(speed),
      "settles": settled(max_vio_S, bound),
      "max_vio": float(max_vio_S[-last:].mean()),
      "regret": float(regret_S[-last:].mean()),
    }
    for speed, max_vio_S, regret_S in zip(speeds, found["max_vio"], found["regret"], strict=True)
  ]
  stable = [row["speed"] for row in rows if row["settles"] is not None]
  best = min(rows, key=lambda r: (r["settles"] is None, r["settles"] or 0, r["max_vio"]))
  return {
    "rule": name, "best": best, "stable": stable, "speeds": rows,
    "steps_per_s": round(len(speeds) * steps / seconds),
    "curve": [float(v) for v in found["max_vio"][rows.index(best)]],
  }  # fmt: skip


def compare(
  logits: recorded.Logits,
  router_name: str = "sigmoid_topk",
  names=None,
  speeds=None,
  steps: int = 400,
  bound: float = 0.5,
) -> dict:
  """Every controller (or those named) over a grid of speeds."""
  cfg, known = router(router_name, logits.k), rules()
  for name in names or ():
    if name not in known:
      raise Wrong(f"lab: there is no controller {name!r}. {plugin.hint(name, known)}")
  speeds = np.geomspace(1e-4, 1.0, 13) if speeds is None else np.asarray(speeds, float)
  if steps < 1 or not len(speeds) or not np.all(speeds > 0) or bound <= 0:
    raise Wrong(
      f"lab: steps {steps}, bound {bound} and all of {len(speeds)} speeds must be above 0."
    )
  _check_bias(logits, cfg, router_name)
  chosen = {name: rule for name, rule in known.items() if names is None or name in names}
  results = [
    measure(logits, cfg, name, rule, speeds.astype(np.float32), steps, bound)
    for name, rule in chosen.items()
  ]
  free = replay(
    jnp.asarray(logits.logit_SNU), jnp.asarray(logits.valid_SN), jnp.zeros(1), cfg,
    known[next(iter(chosen))], min(steps, len(logits.logit_SNU)),
  )["max_vio"]  # fmt: skip
  return {
    "source": logits.source, "router": router_name, "k": logits.k, "steps": steps, "bound": bound,
    "shape": list(logits.logit_SNU.shape), "without": float(free.mean()), "rules": results,
  }  # fmt: skip


def _check_bias(logits, cfg, name):
  """A router that no bias moves cannot be controlled."""
  logit_NU, valid_N = jnp.asarray(logits.logit_SNU[0]), jnp.asarray(logits.valid_SN[0])
  U = logit_NU.shape[1]
  if not hasattr(plugin.module(cfg), "select"):
    raise Wrong(f"lab: with {name} experts choose, so that their load is even; use 'sigmoid_topk'.")
  push_U = jnp.zeros(U).at[0].set(100.0)
  count = lambda bias_U: moe.decide(logit_NU, inputs(valid_N, {"bias_U": bias_U}, U), cfg).count_U()
  if bool((count(push_U) == count(-push_U)).all()):
    raise Wrong(f"lab: {name} chooses without a bias, which controllers move; use 'sigmoid_topk'.")


def table(result: dict) -> str:
  """The result as text for a terminal."""
  S, N, U = result["shape"]
  cells = [["controller", "best speed", "settles", "MaxVio", "regret", "stable speeds", "steps/s"]]
  for rule in result["rules"]:
    best, stable = rule["best"], rule["stable"]
    cells.append([
      rule["rule"], f"{best['speed']:.3g}", "never" if best["settles"] is None else
      str(best["settles"]), f"{best['max_vio']:.3f}", f"{best['regret']:.5f}",
      f"{stable[0]:.3g} .. {stable[-1]:.3g} ({len(stable)})" if stable else "none",
      f"{rule['steps_per_s']:,}",
    ])  # fmt: skip
  widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
  lines = [
    "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
  ]
  head = (
    f"{result['source']}: {S} batches of {N} tokens over {U} ids, {result['router']} with"
    f" k={result['k']}, {result['steps']} control steps, bound {result['bound']} on MaxVio"
    f" ({result['without']:.3f} without a controller)"
  )
  return "\n".join([head, "", *lines])


def run(
  source, out="runs/lab", router="sigmoid_topk", rules=None, speeds=None, steps=400, bound=0.5,
  layer=None, batches=32,
) -> str:  # fmt: skip
  """What `python -m moejax lab` does: lab.json, lab.png and, of a run, logits.npz; the table."""
  from moejax.lab import figure  # noqa: PLC0415  without a plot no matplotlib

  logits = recorded.open(source, layer, steps if source == "drift" else batches)
  result = compare(logits, router, rules, speeds, steps, bound)
  folder = pathlib.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  if pathlib.Path(source).is_dir():
    recorded.write(logits, folder / "logits.npz")
  (folder / "lab.json").write_text(json.dumps(result, indent=1) + "\n")
  figure.write(result, folder / "lab.png")
  return f"{table(result)}\n\nwritten to {folder / 'lab.json'} and {folder / 'lab.png'}"
