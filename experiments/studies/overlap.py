"""Do experts that wait for the first dense FFN train alike, and what lies under their exchange?"""

import functools
import pathlib
import tempfile

from configs.studies.overlap import ARMS  # the arms are data and live in configs/
from experiments import verdicts

CLAIM = (
  "Shortcut-connected MoE blocks whose experts wait for the first dense FFN train to the same loss,"
  " within 0.1 per cent, as those whose order the compiler chooses; a TPU v5p is given dense"
  " matmuls under the way there and under the way back of their exchange, which it is not in serial"
  " blocks."
)
MARGIN = 0.001
TOPOLOGY, D, T, E, K = "v5p:2x2x1", 2048, 2048, 8, 4
OPTIONS = {"xla_tpu_enable_async_all_to_all": True}
LAYERS = {
  "serial": [{"ffn": "mlp"}, {"ffn": "moe"}],
  "free": [{"name": "shortcut"}],
  "overlap": [{"name": "shortcut", "overlap": True}],
}


@functools.cache
def scheduled(blocks: str) -> list:
  """The exchanges of a forward pass over four devices that hold two experts each (TPU compiler)."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415
  from jax.sharding import NamedSharding  # noqa: PLC0415
  from jax.sharding import PartitionSpec as P  # noqa: PLC0415

  from moejax.core import axes, config  # noqa: PLC0415
  from moejax.models import decoder  # noqa: PLC0415
  from moejax.perf import machines, schedule  # noqa: PLC0415
  from pallas_kernels import aot  # noqa: PLC0415

  moe = {"num_experts": E, "hidden": D // 2, "router": {"name": "topk", "k": K}}
  moe |= {"dispatch": {"name": "all_to_all"}, "edits": [{"name": "capacity", "factor": 1.0}]}
  attention = {"heads": D // 128, "kv_heads": D // 128, "head_width": 128}
  section = {"vocab": 512, "width": D, "mlp": {"hidden": D}, "moe": moe,
             "attention": attention, "layers": LAYERS[blocks]}  # fmt: skip
  model = decoder.Model(config.resolve({"model": section}).model)
  machine = machines.find(TOPOLOGY)
  mesh = machines.mesh(machine, {"expert": 4})
  zero_BT = lambda: jnp.zeros((4, T), int)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), zero_BT()))
  on = lambda leaf, spec: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
  )
  forward = lambda variables, token_BT: model.apply(variables, token_BT)[0]
  with jax.set_mesh(mesh), aot.environment(), tempfile.TemporaryDirectory() as folder:
    variables = jax.tree.map(on, variables, axes.specs(variables, mesh))
    traced = jax.jit(forward).trace(variables, on(jax.eval_shape(zero_BT), P("expert")))
    dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=OPTIONS | dump)
    found = [*pathlib.Path(folder).glob("*after_optimizations.txt")]
    text = max((path.read_text() for path in found), key=len)
  return schedule.exchanges(text)


@functools.cache
def matmuls(blocks: str) -> dict:
  """Matmuls of dense parts under the way there and back; NaN where there is no TPU compiler."""
  from pallas_kernels import aot  # noqa: PLC0415

  if aot.missing():
    return {f"{blocks}_there": float("nan"), f"{blocks}_back": float("nan")}
  there, back = scheduled(blocks)
  dense = lambda one: len([name for name in one.under if "/moe/" not in name])
  return {f"{blocks}_there": dense(there), f"{blocks}_back": dense(back)}


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  under = {key: n for blocks in LAYERS for key, n in matmuls(blocks).items()}
  return {"loss": run.last("loss", "eval"), "train_loss": run.last("loss"), **under}


def verdict(table) -> str:
  """Equal losses and the schedule: the weaker word of the two."""
  same = verdicts.close(table, "loss", tuple(ARMS), MARGIN)
  of = {b: [table.values("free", f"{b}_{way}")[0] for way in ("there", "back")] for b in LAYERS}
  if any(n != n for pair in of.values() for n in pair):  # NaN
    order = "unclear: no schedule was compiled, which needs the extra aot"
  else:
    good = all(n > 0 for n in of["free"] + of["overlap"]) and of["serial"] == [0, 0]
    order = f"{'holds' if good else 'fails'}: dense matmuls under the way there and back "
    order += ", ".join(f"{b} {a:.0f} and {c:.0f}" for b, (a, c) in of.items())
  return f"{verdicts.weakest(same, order)}: {same}; {order}"
