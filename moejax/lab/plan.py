"""What a training step needs on a machine that is not there: memory, FLOPs, bytes moved.

The whole step (forward, backward, optimiser, hooks) goes through the machine's own compiler on this
one; no array is ever made. Bytes, FLOPs and seconds are those of one device and one step.
"""

import importlib.metadata
import json
import math
import pathlib
import re
import time

import jax
import jax.numpy as jnp

from moejax.core import config, flags, memory
from moejax.core.plugin import Failed, Wrong
from moejax.layers import pipeline
from moejax.perf import compiled, flops, hardware, hlo, links, machines
from moejax.train import mesh as meshes
from moejax.train import phase

SEQ = 4096  # of a config that says nothing of data
GiB = 2**30
SMALL = 2**20  # bytes of a collective that the table leaves to the last line


def make(words: list[str], topology: str, mesh: str = "") -> dict:
  """The plan of a config, given as the words of a command line, on a topology.

  A config that says nothing of data gets sequences of 4096, and the smallest micro-batch that the
  mesh takes.
  """
  machine = machines.find(topology)
  section = flags.parse(words)
  sizes = meshes.parse(mesh or section.get("mesh", "")) or {"data": len(machine.devices)}
  there = machines.mesh(machine, sizes)
  section.setdefault("data", {}).setdefault("seq_len", SEQ)
  train = section.setdefault("train", {})
  train.setdefault("batch_size", smallest(section, there) * train.get("accumulate", 1))
  with jax.set_mesh(there):
    cfg = config.resolve(section)
    if cfg.model.vocab is None:
      raise Wrong("plan: model.vocab follows a tokenizer, and a plan reads no text; set it.")
    meshes.check(cfg, there)
    with meshes.entered(there, cfg.roles):
      found = of(cfg, machine, there)
  found["params"] = flops.params(cfg.model, cfg.data.seq_len)
  how = {"topology": topology, "mesh": ",".join(f"{a}:{n}" for a, n in sizes.items())}
  return {"words": words, **how, **found}


def smallest(section: dict, mesh) -> int:
  """Rows of the smallest micro-batch: one for each part of the rows of each that stages share.

  >>> smallest({"model": {}}, jax.sharding.AbstractMesh((4, 2), ("data", "stage")))
  8
  """
  stages = mesh.shape.get(pipeline.AXIS, 1)
  shared = section.get("model", {}).get("pipeline", {}).get("microbatches") or stages
  # micro-batches of a pipeline are cut in rows by all axes of tokens
  return meshes.rows(mesh) * (1 if stages == 1 else shared * mesh.shape.get("context", 1))


def of(cfg, machine: machines.Machine, mesh) -> dict:
  """The plan of a resolved run on the mesh in context."""
  start = time.perf_counter()
  _, _, step, template = phase.program(cfg, None, mesh)
  held = state_bytes(template)
  if sum(held.values()) > machine.room():
    raise Failed(
      f"plan: parameters and moments take {sum(held.values()) / GiB:.1f} GiB of a device that has"
      f" {machine.room() / GiB:.1f} ({machine.text}); cut them over more devices (fsdp, expert,"
      " tensor), or set precision.params=bfloat16."
    )
  batch = abstract_batch(cfg, mesh)
  lowered = step.trace(template, batch).lower(lowering_platforms=(machine.platform,))
  traced = time.perf_counter() - start
  try:
    program = compiled.compile(lowered, "step")
  except compiled.Full as problem:
    raise Failed(
      f"plan: the step does not fit {machine.text}: {problem}; cut it over more devices (fsdp,"
      " expert), set model.remat=full, or make the micro-batch smaller with train.accumulate."
    ) from problem
  tokens, devices = cfg.train.batch_size * cfg.data.seq_len, len(machine.devices)
  needed = flops.train(cfg.model, cfg.data.seq_len) * tokens / devices
  collectives = hlo.collectives(program.text)
  peak = hardware.data_sheet(machine.devices[0].device_kind, "bfloat16") or math.inf
  stages = mesh.shape.get(pipeline.AXIS, 1)
  order = pipeline.schedule(cfg.model.pipeline, stages)
  return {
    "devices": devices,
    "tokens": tokens,
    "bytes": {"room": machine.room(), **held, **_of_program(program)},
    "flops": needed,
    "collectives": by_kind(collectives, dict(mesh.shape)),
    "largest": [list(row) for row in program.largest],
    "seconds": {
      "compute": needed / peak,
      "links": links.seconds(collectives, machine),
      "trace": traced,
      "compile": program.seconds,
      "processor": program.processor,
    },
    "compiler": compiler(machine.platform),
    **({"pipeline": {**order._asdict(), "bubble": order.bubble}} if stages > 1 else {}),
  }


def abstract_batch(cfg, mesh) -> dict:
  """The shapes of a batch, cut over the axes of tokens."""
  cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(meshes.token_axes(mesh)))
  shape = (cfg.train.batch_size, cfg.data.seq_len + 1)
  rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=cut)
  return {"token_BT": rows, "segment_BT": rows}


def state_bytes(template) -> dict[str, int]:
  """Bytes of the parts of the state on one device."""

  def held(tree):
    leaves = [a for a in jax.tree.leaves(tree) if a.sharding.memory_kind != memory.HOST]
    part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(part(leaf) for leaf in leaves)

  rest = (template.model_state, template.ema)
  return {"params": held(template.params), "optim": held(template.opt_state), "rest": held(rest)}


def _of_program(program) -> dict[str, int]:
  memory = program.memory
  kept = compiled.kept(program.text)
  total = memory["arguments"] + memory["temporary"]
  words = ("temporary", "host")
  return {**{w: memory[w] for w in words}, "kept": kept, "peak": memory["peak"] or total}


def by_kind(found: list[hlo.Collective], sizes: dict[str, int]) -> list[dict]:
  """Collectives added up by kind, mesh axes and dtype, those of the most bytes first."""
  rows: dict[tuple, dict] = {}
  for one in sorted(found, key=lambda one: -one.bytes):
    key = (one.kind, ",".join(hlo.axes(one.groups, sizes)), one.dtype)
    most = {"times": 0, "bytes": 0.0, "known": True, "where": place(one.where)}
    row = rows.setdefault(key, most)
    row["times"] += one.times
    row["bytes"] += one.bytes
    row["known"] &= one.known
  rows = dict(sorted(rows.items(), key=lambda item: -item[1]["bytes"]))
  return [dict(zip(("kind", "axes", "dtype"), key, strict=True)) | row for key, row in rows.items()]


def place(where: str) -> str:
  """Where in the model an operation is, without the words of its transforms.

  >>> place("jit(step)/transpose(jvp(Model))/while/body/layers_000_003/checkpoint/0/ffn/psum")
  'backward 0/ffn/psum'
  """
  ends = [word for word in where.split("/") if word][-3:]
  plain = [
    word for word in ends if not re.match(r"jit|jvp|transpose|while|checkpoint|closed", word)
  ]
  return ("backward " if "transpose(" in where else "") + "/".join(plain)


def compiler(platform: str) -> str:
  """The name and version of the package that compiled."""
  package = {"tpu": "libtpu", "cuda": "jax-cuda13-plugin"}.get(platform, "jaxlib")
  return f"{package} {importlib.metadata.version(package)}, jax {jax.__version__}"


def fits(plan: dict) -> bool:
  """Whether a device has room for it."""
  return plan["bytes"]["peak"] <= plan["bytes"]["room"]


def table(plan: dict) -> str:
  """The plan for a reader."""
  size, seconds = plan["bytes"], plan["seconds"]
  share = size["peak"] / size["room"]
  count = lambda n: f"{n / 1e9:.1f}B" if n >= 1e8 else f"{n / 1e6:.1f}M"
  total, active = (count(plan["params"][word]) for word in ("total", "active"))
  lines = [
    f"{plan['topology']}, {plan['devices']} devices, mesh {plan['mesh']};"
    f" {total} parameters, {active} active; {plan['tokens']:,} tokens in a step",
    "",
    f"{'memory of a device':<44} {'GiB':>9}",
    _row("parameters", size["params"]),
    _row("optimiser", size["optim"]),
    _row("other state", size["rest"]),
    _row("temporaries", size["temporary"]),
    _row("  of them activations kept for backward", size["kept"]),
    _row("peak", size["peak"]) + f"   {share:.0%} of {size['room'] / GiB:.1f} GiB"
    + ("" if fits(plan) else ": DOES NOT FIT"),
    _row("host memory", size["host"]),
    "",
    f"{'collective':<20} {'axes':<24} {'dtype':<10} {'times':>7} {'GiB':>9}  most of it",
  ]  # fmt: skip
  if "pipeline" in plan:
    about = plan["pipeline"]
    lines.insert(
      1,
      f"pipeline of {about['stages']} stages, {about['microbatches']} micro-batches, rounds:"
      f" {about['rounds']}; a stage is idle for {about['bubble']:.0%} of its ticks",
    )
  worked = f" ({seconds['processor']:.0f} s of all cores)" if "processor" in seconds else ""
  large = [row for row in plan["collectives"] if row["bytes"] >= SMALL]
  for row in large:
    open_ended = "" if row["known"] else "  at least: a loop of unknown length"
    lines.append(
      f"{row['kind']:<20} {row['axes']:<24} {row['dtype']:<10} {row['times']:>7}"
      f" {row['bytes'] / GiB:>9.3f}  {row['where']}{open_ended}"
    )
  small = [row for row in plan["collectives"] if row["bytes"] < SMALL]
  lines.append(
    f"and {len(small)} kinds of less than 1 MiB, {sum(r['bytes'] for r in small):,.0f} B"
  )
  lines += [
    "",
    f"{plan['flops'] / 1e12:.1f} TFLOP needed: {seconds['compute']:.2f} s at the data sheet's peak;"
    f" {seconds['links']:.2f} s of collectives at the rate of the links",
    f"traced in {seconds['trace']:.0f} s, compiled in {seconds['compile']:.0f} s{worked};"
    f" {plan['compiler']}",
    "largest values: " + ", ".join(f"{shape} {n / GiB:.2f}" for n, shape in plan["largest"][:5]),
  ]
  return "\n".join(lines)


def _row(what: str, size: int) -> str:
  return f"{what:<44} {size / GiB:>9.2f}"


def run(words: list[str], topology: str, mesh: str = "", out: str | None = None) -> str:
  """What the command prints: the table; Failed where the step does not fit, after writing `out`."""
  plan = make(words, topology, mesh)
  if out:
    write(plan, out)
  if not fits(plan):
    need, room = (plan["bytes"][word] / GiB for word in ("peak", "room"))
    raise Failed(
      f"plan: the step needs {need:.1f} GiB of a device that has {room:.1f}; cut it over more"
      f" devices, set model.remat=full, or raise train.accumulate.\n\n{table(plan)}"
    )
  return table(plan) + (f"\n{out}" if out else "")


def write(plan: dict, path: str) -> None:
  """A plan as JSON, one line for each row of a list."""
  text = json.dumps(plan, indent=1)
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  pathlib.Path(path).write_text(text + "\n")
