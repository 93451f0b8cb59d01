"""What do caches of experts hit on real choices, and what does a ring of sections need and cost?"""

import functools

import numpy as np

from configs.studies.se_moe import ARMS  # the arms are data and live in configs/
from experiments import heldout, verdicts
from moejax.perf import offloading

CLAIM = (
  "A cache of an eighth or a quarter of the experts hits more often when it counts uses than when"
  " it goes by age, on real choices and under drifting Zipf loads; a ring of K of 16 sections holds"
  " K + 2 on a TPU at most, and nothing stalls from K = 1 + copy / work on with an engine for each"
  " copy."
)
SHOWN = ("real_by_uses", "real_by_age")
ROOMS, SECTIONS, WIDTH = (8, 4), 16, 1024  # one part in so many is held; of the ring
SKEWS, DRIFTS, SEEDS, STEPS, EXPERTS = (0.8, 1.2), (64, 1024), 3, 4096, 64
RATIOS = (1.0, 2.0, 3.5)  # of copying a section to working on it


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {"loss": run.last("loss", "eval"), **real(run.path), **drifting(), **stalls(), **memory()}


def real(path) -> dict:
  """Mean hit rates over layers and rooms, where tokens ask for their experts one by one."""
  choices = heldout.choices(path, batches=1)
  uses = [expert_NK.ravel()[:STEPS].tolist() for expert_NK in choices.expert_LNK]
  rates = [
    (offloading.lfu(one, choices.experts // room), offloading.lru(one, choices.experts // room))
    for one in uses
    for room in ROOMS
  ]
  by_uses, by_age = np.mean(rates, axis=0)
  return {"real_by_uses": float(by_uses), "real_by_age": float(by_age)}


@functools.cache
def drifting() -> dict:
  """The least lead of counting over age, in points, over skews and drifts; means of seeds."""
  leads = []
  for skew in SKEWS:
    for every in DRIFTS:
      traces = [offloading.drifting(STEPS, EXPERTS, skew, every, seed) for seed in range(SEEDS)]
      for room in ROOMS:
        lead = [offloading.lfu(t, EXPERTS // room) - offloading.lru(t, EXPERTS // room)
                for t in traces]  # fmt: skip
        leads.append(100 * float(np.mean(lead)))
  return {"zipf_least_lead": min(leads), "zipf_most_lead": max(leads)}


@functools.cache
def stalls() -> dict:
  """Whether the simulated ring is free of stalls exactly from the formula's slots on."""
  passes, right = 4, []
  for copy in RATIOS:
    for slots in range(1, SECTIONS + 1):
      took = offloading.ring(SECTIONS, slots, 1.0, copy, passes, engines=SECTIONS)
      free = took == SECTIONS * passes
      right.append(free == (slots >= 1 + copy or slots == SECTIONS))
  return {"formula": float(np.mean(right))}


@functools.cache
def memory() -> dict:
  """Sections that a TPU holds at its peak for K of them resident, by its compiler; NaN without."""
  from moejax.layers import sections  # noqa: PLC0415
  from pallas_kernels import aot  # noqa: PLC0415

  if aot.missing():
    return {f"peak_{K}": float("nan") for K in (1, 2, 4, SECTIONS)}
  return {f"peak_{K}": _peak(K, sections.through) for K in (1, 2, 4, SECTIONS)}


def _peak(K: int, through) -> float:
  """Arguments and temporaries on the device, as sections."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  from pallas_kernels import aot  # noqa: PLC0415

  mesh = aot.mesh("v5e")
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  there = here.with_memory_kind("pinned_host")
  shape = lambda n, at: jax.ShapeDtypeStruct((n, WIDTH, WIDTH), jnp.bfloat16, sharding=at)
  x_BD = jax.ShapeDtypeStruct((8, WIDTH), jnp.bfloat16, sharding=here)
  section = lambda w_DD, x_BD: x_BD + jnp.tanh(x_BD @ w_DD)
  run = jax.jit(lambda near, far, x_BD: through(section, near, far, x_BD))
  with jax.set_mesh(mesh), aot.environment():
    traced = run.trace(shape(K, here), shape(SECTIONS - K, there), x_BD)
    said = traced.lower(lowering_platforms=("tpu",)).compile().memory_analysis()
  assert said is not None  # this compiler tells
  return (said.argument_size_in_bytes + said.temp_size_in_bytes) / (2 * WIDTH**2)


def verdict(table) -> str:
  """Caches, the ring's time, the ring's memory: the weakest word of the three."""
  hits = {arm: [table.values(arm, f"real_by_{how}") for how in ("uses", "age")] for arm in ARMS}
  lead = table.values("free", "zipf_least_lead")[0]
  ahead = [(by_uses > by_age).all() for by_uses, by_age in hits.values()]
  caches = "holds" if all(ahead) and lead > 0 else "fails"
  of = {arm: [100 * float(rate.mean()) for rate in both] for arm, both in hits.items()}
  caches += ": hit rates by uses and by age " + ", ".join(
    f"{arm} {by_uses:.1f} and {by_age:.1f} %" for arm, (by_uses, by_age) in of.items()
  )
  caches += f"; Zipf leads from {lead:+.1f} points"
  right = table.values("free", "formula")[0]
  time = f"{'holds' if right == 1 else 'fails'}: {100 * right:.0f} % of rings stall by the formula"
  peaks = {K: table.values("free", f"peak_{K}")[0] for K in (1, 2, 4, SECTIONS)}
  if any(np.isnan(peak) for peak in peaks.values()):
    room = "unclear: memory was not compiled, which needs the extra aot"
  else:
    room = "holds" if all(peak <= (K + 2) * 1.02 for K, peak in peaks.items()) else "fails"
    room += ": sections at the peak " + ", ".join(f"K={K} {p:.2f}" for K, p in peaks.items())
  return f"{verdicts.weakest(caches, time, room)}: {caches}; {time}; {room}"
