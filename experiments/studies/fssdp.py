"""Do copies of hot experts leave training alone, cost what they say, and spare the busiest?"""

import functools

import numpy as np

from configs.studies.fssdp import ARMS  # the arms are data and live in configs/
from experiments import verdicts, virtual
from moejax.perf import offloading

CLAIM = (
  "Any number of copied experts trains to the same loss within 0.1 per cent and moves and keeps"
  " exactly their weights; each more lowers the rows of the busiest device, under the loads of the"
  " runs and under drifting Zipf loads, where copies chosen by earlier steps save at least 80 per"
  " cent of what those chosen in time do."
)
SHOWN = ("loss", "run_busiest")
MARGIN, SHARE, NUMBER = 0.001, 0.8, 4  # of the savings; bytes of a float32
W, EXPERTS, ROWS, STEPS, SKEW, EVERY, SEEDS = 8, 64, 8192, 200, 1.0, 2048, 3  # drifting loads


def busiest(load_E, hot_R, devices: int = W) -> float:
  """Rows of the busiest device over the mean, where tokens lie evenly on the devices.

  >>> busiest(np.array([6.0, 1.0, 1.0, 0.0]), [], 4), busiest(np.array([6.0, 1, 1, 0]), [0], 4)
  (3.0, 1.25)
  """
  cold_E = np.array(load_E, float)
  cold_E[list(hot_R)] = 0
  own_W = cold_E.reshape(devices, -1).sum(1) + (np.sum(load_E) - cold_E.sum()) / devices
  return float(own_W.max() / own_W.mean())


def hottest(load_E, hot: int) -> list[int]:
  """Ids of the experts with the most rows."""
  return np.argsort(-np.asarray(load_E), kind="stable")[:hot].tolist()


@functools.cache
def loads(seed: int) -> list:
  """Rows of every expert in each step, by Zipf's law with drift."""
  uses = offloading.drifting(STEPS * ROWS, EXPERTS, SKEW, EVERY, seed)
  return [np.bincount(part, minlength=EXPERTS) for part in np.split(np.array(uses), STEPS)]


@functools.cache
def drifting(hot: int) -> dict:
  """Mean over steps and seeds of `busiest`: copies chosen in time, before, once and for all."""
  out = {"known": [], "predicted": [], "fixed": []}
  for seed in range(SEEDS):
    load_SE = loads(seed)
    mean_E, first = load_SE[0].astype(float), hottest(load_SE[0], hot)
    for load_E in load_SE[1:]:
      out["known"].append(busiest(load_E, hottest(load_E, hot)))
      out["predicted"].append(busiest(load_E, hottest(mean_E, hot)))
      out["fixed"].append(busiest(load_E, first))
      mean_E = 0.5 * mean_E + 0.5 * load_E
  return {f"zipf_{name}": float(np.mean(values)) for name, values in out.items()}


@functools.cache
def moved(hot: int) -> dict:
  """Whether the copies are what is summed over owners and what is kept, in bytes on a device."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  from moejax.core.plan import TokenPlan  # noqa: PLC0415
  from moejax.dispatch import fssdp  # noqa: PLC0415
  from moejax.layers import experts  # noqa: PLC0415
  from moejax.perf import hlo  # noqa: PLC0415

  virtual.devices()
  N, D, F, E = virtual.N, virtual.D, virtual.F, virtual.E
  plan = TokenPlan((jnp.arange(2 * N) * 3 % E).reshape(N, 2), jnp.full((N, 2), 0.5), E)
  params = {name: jnp.zeros((E, F, D) if name == "wo_EFD" else (E, D, F))
            for name in ("wg_EDF", "wu_EDF", "wo_EFD")}  # fmt: skip
  x_ND = jnp.zeros((N, D))

  def run(x_ND, params):
    return fssdp.run(plan, x_ND, experts.gated(params), fssdp.Config(hot))[0]

  def kept(policy):
    """Bytes on all devices that wait for the backward pass, arguments among them."""
    part = jax.checkpoint(run, policy=policy)
    waits = jax.eval_shape(lambda x_ND, params: jax.vjp(part, x_ND, params)[1], x_ND, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(waits))

  policies = jax.checkpoint_policies
  with jax.set_mesh(jax.make_mesh((8,), ("expert",), (jax.sharding.AxisType.Auto,))):
    text = jax.jit(run).lower(x_ND, params).compile().as_text() or ""
    named = kept(policies.save_only_these_names(fssdp.BUFFER)) - kept(policies.nothing_saveable)
  sums = [one.bytes for one in hlo.collectives(text) if one.kind == "all-reduce"]
  weights = sum(size for size in sums if size > NUMBER * E)  # without the count of rows
  wanted = fssdp.bytes_moved(hot, D, F, NUMBER)
  return {"copied_bytes": weights, "kept_bytes": named / 8,
          "exact": float(weights == wanted and named == 8 * wanted)}  # fmt: skip


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  hot = run.config["model"]["layers"][0]["ffn"]["dispatch"]["hot"]
  shares = np.concatenate([run.load(layer)[1] for layer in run.layers])
  real = float(np.mean([busiest(share_E, hottest(share_E, hot)) for share_E in shares]))
  return {"loss": run.last("loss", "eval"), "run_busiest": real, **drifting(hot), **moved(hot)}


def verdict(table) -> str:
  """Losses, bytes, the busiest device, predictions: the weakest word of the four."""
  of = lambda arm, column: float(table.values(arm, column).mean())
  falls = lambda column: np.all(np.diff([of(arm, column) for arm in ARMS]) < 0)
  row = lambda column: ", ".join(f"{of(arm, column):.2f}" for arm in ARMS)
  same = verdicts.close(table, "loss", tuple(ARMS), MARGIN)
  exact = all(table.values(arm, "exact").all() for arm in ARMS)
  bytes_are = f"{'holds' if exact else 'fails'}: copies are {of('hot2', 'copied_bytes'):.0f} bytes"
  bytes_are += " for two, summed and kept"
  good = falls("run_busiest") and falls("zipf_known")
  busy = f"{'holds' if good else 'fails'}: busiest over mean for {', '.join(ARMS)}:"
  busy += f" runs {row('run_busiest')}, Zipf {row('zipf_known')}"
  some = [arm for arm, hot in ARMS.items() if hot]
  saved = {
    how: [(of("hot0", "zipf_known") - of(arm, f"zipf_{how}"))
          / (of("hot0", "zipf_known") - of(arm, "zipf_known")) for arm in some]
    for how in ("predicted", "fixed")
  }  # fmt: skip
  guess = (
    f"{'holds' if min(saved['predicted']) >= SHARE else 'fails'}: copies by earlier steps save"
  )
  guess += f" at least {100 * min(saved['predicted']):.0f} % of it, those of the first step"
  guess += f" {100 * min(saved['fixed']):.0f} %"
  return f"{verdicts.weakest(same, bytes_are, busy, guess)}: {same}; {bytes_are}; {busy}; {guess}"
