"""Traces of trained models: recorded over text, laid over another model's choices, compared.

`python -m moejax trace record RUN`, `show FILE`, `replay FILE RUN`, `diff FILE FILE`. The file:
moejax/trace/format.py. In training: moejax/train/tracing.py.
"""

import contextlib
import itertools
import pathlib

import numpy as np

from moejax.core import dtypes, plugin
from moejax.core.plugin import Wrong
from moejax.data import prepare
from moejax.lab import plain, scoring
from moejax.trace import diff
from moejax.trace import format as formats
from moejax.train import restore, tracing


def record(run, path, batches, split: str = "given", gates: str = "float16") -> pathlib.Path:
  """Writes the choices of a restore.Trained over (index, batch) pairs; returns the path."""
  if gates not in formats.GATES:
    raise Wrong(
      f"trace: gates {gates!r} is no way to keep them. {plugin.hint(gates, formats.GATES)}"
    )
  score, path, writer = scoring.Score(run), pathlib.Path(path), None
  path.unlink(missing_ok=True)
  for index, batch in batches:
    layers = score(batch)["layers"]
    writer = writer or formats.Writer(path, tracing.head(run.cfg, run.corpus, layers, split, gates))
    writer.add(tracing.block(run.step, index, batch, layers))
  if writer is None:
    raise Wrong("trace: there is no batch to record; ask for at least one.")
  writer.close()
  return path


def record_run(workdir, out=None, batches: int = 8, split="validation", gates="float16", step=None):
  """The same over text of the run, as many batches as there are; `out`: not in its traces/."""
  if split not in prepare.SPLITS:
    raise Wrong(f"trace: there is no split {split!r}. {plugin.hint(split, prepare.SPLITS)}")
  run = restore.load(workdir, step)
  path = out or pathlib.Path(workdir) / "traces" / f"{split}_{run.step}.trace"
  with contextlib.closing(run.corpus.batches(split, run.cfg.train.batch_size)) as some:
    return record(run, path, enumerate(itertools.islice(some, batches)), split, gates)


def show(path) -> str:
  """What a file holds, as text."""
  trace = formats.read(path)
  steps = [block.step for block in trace.blocks]
  span = f"steps {steps[0]} to {steps[-1]}" if steps else "no step"
  size, head = trace.path.stat().st_size, trace.head
  choices = sum(layer["K"] for layer in head.layers.values()) * head.tokens * len(steps)
  rows = [[name, layer["K"], layer["U"]] for name, layer in head.layers.items()]
  about = ", ".join(f"{name} {value}" for name, value in sorted(head.about.items()))
  return "\n".join([
    f"{path}: {len(steps)} batches of {head.tokens} tokens, {span}; {size:,} bytes,"
    f" {8 * size / max(choices, 1):.1f} bits per choice with gates ({head.gates}) and margins",
    about, "", plain.table(["layer", "K", "U"], rows), *([trace.damage] if trace.damage else []),
  ])  # fmt: skip


def replay(trace: formats.Trace, run, compute=None, gates: bool = False, batches=None) -> dict:
  """The loss of a restore.Trained with a trace's choices, and with its own; their flip rates.

  `compute` is another dtype than the run's. With `gates` the trace's gates are forced too, else
  the router weighs the forced choices. `batches` are those of a trace of given batches.
  """
  if not trace.blocks:
    raise Wrong(trace.damage or f"trace {trace.path} has no step; record it again.")
  if gates and trace.head.gates == "none":
    raise Wrong(f"trace {trace.path} was recorded without gates; record it with --gates=float32.")
  if compute is not None:
    dtypes.dtype(compute)
  split = trace.head.about["split"]
  if batches is None and split not in prepare.SPLITS:
    raise Wrong(f"trace {trace.path} is of batches that were given; give them again (lab.traces).")
  find = batches.__getitem__ if batches else lambda i: scoring.batch_at(run, split, i)
  score, pairs, total = scoring.Score(run, compute), [], np.zeros(3)
  for block in trace.blocks:
    batch = find(block.batch)
    if formats.text_sum(batch["token_BT"]) != block.text:
      raise Wrong(
        f"trace {trace.path}: batch {block.batch} of {split} is another text in this run; use a run"
        " with the same data, train.batch_size and train.seed."
      )
    own, laid = _both(score, trace, run, block, batch, gates)
    pairs.append((block, tracing.block(run.step, block.batch, batch, own["layers"])))
    weigh = lambda found: (found["loss_BT"] * found["valid_BT"]).sum(dtype=np.float64)
    total += weigh(own), weigh(laid), own["valid_BT"].sum()
  free, forced, tokens = total
  found = diff.of_pairs(pairs, trace.head)
  return {"free": free / tokens, "replayed": forced / tokens, "tokens": int(tokens), **found}


def _both(score, trace, run, block, batch, gates):
  """(what the run does by itself, what it does with the choices of a block)."""
  layers = run.cfg.model.layers
  laid = tracing.forced(block, len(layers), slice(None), run.cfg.data.seq_len)
  if not gates:
    laid.pop("gate_BTLK")
  batch = {**batch, **laid}
  free = {**batch, "forced_BTLK": np.full_like(batch["forced_BTLK"], -2)}
  own = score(free)  # the same program as with choices: what differs is the choices alone
  diff.check(trace, tracing.sizes(run.cfg.model, own["layers"]), f"run {run.step}")
  return own, score(batch)


def replay_run(path, workdir, compute=None, gates=False, step=None) -> str:
  """The same for a file and a run, as text."""
  trace, run = formats.read(path), restore.load(workdir, step)
  found = replay(trace, run, compute, gates)
  change = found["replayed"] - found["free"]
  text = (
    f"loss of {workdir} at step {run.step}: {found['free']:.5f} by itself, {found['replayed']:.5f}"
    f" with the choices of the trace ({change:+.5f}), {found['tokens']:,} tokens\n"
  )
  return "\n".join([text, differences(found), *([trace.damage] if trace.damage else [])])


def diff_files(a, b) -> str:
  """Flip rates between two files, as text."""
  traces = [formats.read(path) for path in (a, b)]
  notes = [trace.damage for trace in traces if trace.damage]
  return "\n".join([differences(diff.compare(*traces)), *notes])


def differences(found: dict) -> str:
  """Tables of what diff.compare found."""
  layers = [[name, v["rate"], v["tokens"], v["choices"]] for name, v in found["layers"].items()]
  margins = [[diff.span(v), v["rate"], v["choices"]] for v in found["margins"] if v["choices"]]
  labels = [[name, v["rate"], v["choices"]] for name, v in found["labels"].items() if v["choices"]]
  return "\n\n".join([
    plain.table(["layer", "flipped choices", "tokens with a flip", "choices"], layers),
    plain.table(["margin of the boundary", "flipped choices", "choices"], margins),
    plain.table(["kind of text", "flipped choices", "choices"], labels),
  ])  # fmt: skip
