"""Every kernel by the implementation that is chosen, against every yardstick.

Operations are grouped_matmul (its passes), permute (rows, tokens, and the gradient of these),
routing (top_k, sort, route) and expert_ffn (forward; swiglu is forward and backward). "rate" is
TFLOP/s, or GB/s of what computes nothing; "of roofline" is that against the larger of the time at
the device's peak and a copy's time for the bytes that must be moved. The other "of" are rates as
parts of a yardstick's, above 1 where this is faster: dense matmuls of the same FLOPs, ragged_dot,
the operations that an FFN is composed of, the library's routing, take and scatter-add, and, where
they are installed, tokamax (Mosaic, Triton) and torch; on TPUs megablox. Programs of a row take
turns, and results are checked first: `refused` says what does not do a shape, needs too much memory
or is wrong. On a CPU small cases in float32, elsewhere models in bfloat16.

--ops=routing,...   some of the operations only
--cases=E32,...     or qwen3_30b_a3b,...: a layer of a model; deepseek_v3.down: its matmul down
--tokens=16384      of a model's batch; rows are as many times the choices of a token
--rounds=7          times each program is run
--minutes=7         nothing is begun after so long
--tune              try every setting, and write pallas_kernels/tables/, which is chosen from
"""

import datetime
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time

from moejax.core import plugin
from moejax.core.plugin import Wrong

OPTIONS = {"ops": "", "cases": "", "tokens": 16384, "rounds": 7, "minutes": 7, "tune": False}
YARDSTICKS = {  # of each operation, besides those of the platform
  "grouped_matmul": ("dense", "ragged"),
  "permute": ("take", "scatter"),
  "routing": ("library",),
  "expert_ffn": ("dense", "composed"),
}
OTHERS = {"gpu": ("tokamax mosaic", "tokamax triton", "torch"), "tpu": ("megablox",)}
BETTER = {name: "higher" for name in ("rate", "of roofline", "of dense", "of library")}
FIRST = ("qwen3_30b_a3b", "deepseek_v3", "olmoe_1b_7b", "mixtral_8x7b")  # where time is short


def run(options: dict):
  """One row per operation, case, part and load."""
  from pallas_kernels import target, tune  # noqa: PLC0415  jax comes after runtime.prepare()
  from pallas_kernels.grouped_matmul.tune import absent  # noqa: PLC0415

  dtype, given = "float32" if target.platform() == "cpu" else "bfloat16", asked(options)
  names, copied, start, tuned = columns(options), copy_rate(), time.monotonic(), {}
  if missing := absent():
    print(f"not installed, so not compared with: {', '.join(missing)}", file=sys.stderr)
  for op, name, case, loads in given:
    for part in tune.of(op).parts(options["tune"]):
      if time.monotonic() - start > 60 * options["minutes"]:
        print(f"no time left for {op} {name} {part} and the rest; give --minutes", file=sys.stderr)
        return
      job = tune.of(op).job(case, part, loads, dtype, options["tune"])
      measured = tune.measure(job, options["rounds"])
      if options["tune"]:
        tuned[op] = tune.write(op, tune.rows(job, measured), **about())
      for load in loads:
        if best := fastest(job, measured.ms[load], options["tune"]):
          told = row(job, load, copied, measured, best, names)
          yield {"case": f"{op} {name} {part} {load}"} | told
  for path in tuned.values():
    print(f"written: {path}", file=sys.stderr)


def operations(options: dict) -> list[str]:
  """The operations of the options."""
  from pallas_kernels import tune  # noqa: PLC0415

  ops = options["ops"].split(",") if options["ops"] else list(tune.OPS)
  for op in ops:
    if op not in tune.OPS:
      raise Wrong(f"bench kernels: no operation {op!r}. {plugin.hint(op, list(tune.OPS))}")
  return ops


def asked(options: dict) -> list[tuple]:
  """(operation, name, case, loads) of the options, or of what fits this machine."""
  from pallas_kernels import target, tune  # noqa: PLC0415

  known = {op: tune.of(op).named(options["tokens"]) for op in operations(options)}
  names = list(dict.fromkeys(name for cases in known.values() for name in cases))
  models = [n for n in known.get("grouped_matmul", {}) if n.endswith(".down")]
  models = {name.removesuffix(".down") for name in models} | {"wide", *FIRST}
  is_model = lambda name: name.removesuffix(".down") in models
  if options["cases"]:
    chosen = options["cases"].split(",")
    for name in chosen:
      if name not in names:
        raise Wrong(f"bench kernels: no case {name!r}. {plugin.hint(name, names)}")
  elif target.platform() == "cpu":
    chosen = [name for name in names if not is_model(name)]
  else:
    place = {name: i for i, name in enumerate(FIRST)}
    rank = lambda name: (place.get(name.removesuffix(".down"), len(FIRST)), name.endswith(".down"))
    chosen = sorted(filter(is_model, names), key=rank)
  return [(op, n, *cases[n]) for n in chosen for op, cases in known.items() if n in cases]


def columns(options: dict) -> list[str]:
  """The yardsticks of these operations on this machine."""
  from pallas_kernels import target  # noqa: PLC0415

  ops = operations(options)
  others = OTHERS.get(target.platform(), ()) if "grouped_matmul" in ops else ()
  return list(dict.fromkeys([name for op in ops for name in YARDSTICKS[op]] + list(others)))


def fastest(job, ms: dict, every: bool) -> tuple | None:
  """The program that would be chosen, or of every setting the fastest; None if there is none."""
  from pallas_kernels import choose  # noqa: PLC0415

  ours = [key for key in ms if key in job.ways]
  if not every:
    names = [key[0] for key in ours]
    order = choose.choose(job.op, job.chosen_by or job.part, job.shape, job.dtype)
    chosen = next((name for name in order if name in names), None)
    ours = [key for key in ours if key[0] == chosen]
  return min(ours, key=lambda key: ms[key], default=None)


def row(job, load: str, copied: float, measured, best: tuple, names: list[str]) -> dict:
  """Rates and ratios of the best against everything else that was measured."""
  from moejax.perf import hardware  # noqa: PLC0415
  from pallas_kernels import tune  # noqa: PLC0415

  ms, (flops, moved) = measured.ms[load], job.work[load]
  least = max(flops / hardware.peak(job.dtype)[1] if flops else 0.0, moved / copied)
  ratio = lambda name: job.yardsticks[name].ratio.get(load, 1.0) if name in job.yardsticks else 1.0

  def of(name):
    if (name, None) not in ms:
      return None
    return round(ms[name, None] / (ratio(name) * ms[best]), 2)

  rate = 1e-9 * flops / ms[best] if flops else 1e-6 * moved / ms[best]
  return {
    "by": tune.label(best),
    "ms": round(ms[best], 3),
    "rate": float(f"{rate:.3g}"),
    "unit": "TFLOP/s" if flops else "GB/s",
    "of roofline": round(1e3 * least / ms[best], 3),
    **{f"of {name}": of(name) for name in names},
    "refused": "; ".join(f"{who}: {why}" for who, why in measured.refused.items()) or None,
  }


def copy_rate() -> float:
  """Bytes per second that a copy reads and writes here, the best of a few."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  x = jnp.ones((64 << 20) if jax.default_backend() == "cpu" else (1 << 30), jnp.int8)
  copy = jax.jit(lambda x: x + 1)
  copy(x).block_until_ready()
  times = []
  for _ in range(5):
    start = time.perf_counter()
    copy(x).block_until_ready()
    times.append(time.perf_counter() - start)
  return 2 * x.size / min(times)


def about() -> dict:
  """When and with what a table was measured."""
  import jax  # noqa: PLC0415

  told: dict[str, str | int | None] = {
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "jax": jax.__version__,
    "jaxlib": importlib.metadata.version("jaxlib"),
  }
  if jax.default_backend() == "cpu":
    told["cores"] = os.cpu_count()
  if shutil.which("nvidia-smi") and jax.default_backend() == "gpu":
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told["driver"] = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]
  return told
