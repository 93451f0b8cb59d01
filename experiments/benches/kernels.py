"""Each pass of the grouped matmul by the implementation that is chosen, against every yardstick.

"rate" is TFLOP/s of the rows in use; "of roofline" is that against the larger of the time at the
device's peak and a copy's time for the bytes that the pass must move. The other "of" are rates as
parts of a yardstick's, above 1 where this is faster: a dense matmul of all rows, ragged_dot, and,
where they are installed, tokamax (Mosaic, Triton) and torch (forward); on TPUs megablox. Programs
of a row take turns, and results are checked first: `refused` says what does not do a shape, needs
too much memory or is wrong. On a CPU small cases in float32, elsewhere models in bfloat16.

--cases=E32,...  or qwen3_30b_a3b,deepseek_v3.down,...: a model's matmul up, or the one down
--tokens=16384   of a model's batch; rows are as many times the choices of a token
--rounds=7       times each program is run
--minutes=7      no case is begun after so long
--tune           try every setting, and write pallas_kernels/tables/, which is chosen from
"""

import datetime
import importlib.metadata
import shutil
import subprocess
import sys
import time

from moejax.core import plugin
from moejax.core.plugin import Wrong

OPTIONS = {"cases": "", "tokens": 16384, "rounds": 7, "minutes": 7, "tune": False}
BETTER = {"rate": "higher", "of roofline": "higher", "of dense": "higher"}
LOADS = ("even", "zipf")
YARDSTICKS = {  # besides the dense matmul
  "cpu": ("ragged",),
  "gpu": ("ragged", "tokamax mosaic", "tokamax triton", "torch"),
  "tpu": ("ragged", "megablox"),
}
FIRST = ("qwen3_30b_a3b", "deepseek_v3", "olmoe_1b_7b", "mixtral_8x7b")  # where time is short


def run(options: dict):
  """One row per case, pass and load."""
  from pallas_kernels import choose, target  # noqa: PLC0415  jax comes after runtime.prepare()
  from pallas_kernels.grouped_matmul import tune  # noqa: PLC0415

  dtype, given = "float32" if target.platform() == "cpu" else "bfloat16", asked(options)
  copied, start, table = copy_rate(), time.monotonic(), []
  if absent := tune.absent():
    print(f"not installed, so not compared with: {', '.join(absent)}", file=sys.stderr)
  for name, (case, loads) in given.items():
    if time.monotonic() - start > 60 * options["minutes"]:
      print(f"no time left for {name} and what follows; give --minutes", file=sys.stderr)
      break
    for part in tune.PARTS:
      measured = tune.measure(case, part, loads, dtype, options["rounds"], options["tune"])
      table += tune.rows(case, part, dtype, measured)
      for load in loads:
        shape = {letter: getattr(case, letter) for letter in "MDFE"}
        order = choose.choose("grouped_matmul", part, shape, dtype)
        best = fastest(measured.ms[load], None if options["tune"] else order)
        told = row(case._replace(load=load), part, dtype, copied, measured, best)
        yield {"case": f"{name} {part} {load}"} | told
  if options["tune"]:
    print(f"written: {tune.write(table, **about())}", file=sys.stderr)


def asked(options: dict) -> dict:
  """name -> (case, loads) of the options, or of what fits this machine."""
  from pallas_kernels import target  # noqa: PLC0415
  from pallas_kernels.grouped_matmul import cases  # noqa: PLC0415

  known = {name: (case, (case.load,)) for name, case in cases.BENCH.items()}
  names = list(known)
  models = {f"{model}{end}": (model, bool(end)) for model in cases.MODELS for end in ("", ".down")}
  known |= {n: (cases.of_model(m, options["tokens"], d), LOADS) for n, (m, d) in models.items()}
  if target.platform() != "cpu":
    names = sorted(models, key=lambda n: (models[n][0] not in FIRST, models[n][1]))
  names = options["cases"].split(",") if options["cases"] else names
  for name in names:
    if name not in known:
      raise Wrong(f"bench kernels: no case {name!r}. {plugin.hint(name, list(known))}")
  return {name: known[name] for name in names}


def fastest(ms: dict, order=None) -> tuple:
  """The program that is chosen in this order of implementations, or the fastest of ours.

  >>> ms = {("xla", (8,)): 2.0, ("triton", None): 1.0, ("dense", None): 0.5}
  >>> fastest(ms), fastest(ms, ("xla", "triton"))
  (('triton', None), ('xla', (8,)))
  """
  from pallas_kernels.grouped_matmul import tune  # noqa: PLC0415

  ours = [key for key in ms if key[0] in tune.OURS]
  chosen = next((name for name in order or () if any(key[0] == name for key in ours)), None)
  return min((key for key in ours if chosen in (None, key[0])), key=lambda key: ms[key])


def row(case, part: str, dtype, copied: float, measured, best: tuple) -> dict:
  """Rates and ratios of the best against everything else that was measured."""
  import jax.numpy as jnp  # noqa: PLC0415

  from moejax.perf import hardware  # noqa: PLC0415
  from pallas_kernels import target  # noqa: PLC0415
  from pallas_kernels.grouped_matmul import cases, tune  # noqa: PLC0415

  ms, size_E = measured.ms[case.load], cases.sizes(case)
  used, busy = int(size_E.sum()), case.E if part == "d_rhs" else int((size_E > 0).sum())
  flops = 2.0 * used * case.D * case.F
  moved = jnp.dtype(dtype).itemsize * (used * (case.D + case.F) + busy * case.D * case.F)
  least = max(flops / hardware.peak(dtype)[1], moved / copied)
  of = lambda name: round(ms[name, None] / ms[best], 2) if (name, None) in ms else None
  dense = of("dense")
  return {
    "by": tune.label(best),
    "ms": round(ms[best], 3),
    "rate": float(f"{1e-9 * flops / ms[best]:.3g}"),
    "of roofline": round(1e3 * least / ms[best], 3),
    "of dense": None if dense is None else round(dense * used / case.M, 2),
    **{f"of {name}": of(name) for name in YARDSTICKS[target.platform()]},
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

  told = {
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "jax": jax.__version__,
    "jaxlib": importlib.metadata.version("jaxlib"),
  }
  if shutil.which("nvidia-smi") and jax.default_backend() == "gpu":
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told["driver"] = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]
  return told
