"""Traces in training: what every token chose in a step, written down, or laid over it again.

Config: `train.trace_every`, `train.trace_split`, `train.replay` (train/step.py). To record a step
        is one more forward pass with its parameters, batch, key and knobs: the step itself stays
        the program that it is without a trace. The file is traces/stage_<i>.trace.
"""

import contextlib
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import config, dtypes, rng, runs, tree
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.trace import diff
from moejax.trace import format as formats
from moejax.train import mesh as meshes
from moejax.train import metrics, objective, phase, processes

TAPS = ("expert_NK", "gate_NK", "margin_N", "boundary_N")


def make(model, precision, accumulate: int = 1):
  """choices(variables, batch, key, knobs) -> {layer_NNN: {expert_NK, gate_NK, ...}} of a batch."""
  part = lambda a: a.reshape(accumulate, -1, *a.shape[1:])

  def choices(variables, batch, key, knobs):
    def micro(i_and_batch):
      i, one = i_and_batch
      mine = None if key is None else jax.random.fold_in(key, i)  # as train/step.py does
      fields = {"key": mine, "knobs": knobs, "taps": TAPS}
      return chosen(objective.cross_entropy(model, variables, one, precision, **fields)[3], model)

    found = jax.lax.map(micro, (jnp.arange(accumulate), jax.tree.map(part, batch)))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

  return choices


def chosen(layer_sums, model, taps=TAPS) -> dict:
  """What taps left in the sums of a model, by layer."""
  by_layer = tree.unstack(layer_sums, model.cfg)
  return {
    name: {tap: tree.at(by_layer[name], path)[f"taps/{tap}"] for tap in taps}
    for name, path in metrics.moe_layers(model.cfg)
  }


def sizes(model_cfg, choices) -> dict:
  """{layer_NNN: {K, U}}; `choices` has the arrays of a trace, or their shapes."""
  cfgs = {}
  for i, layer in enumerate(model_cfg.layers):
    for _, cfg in runs.sections(layer):
      if isinstance(cfg, moe.Config):
        name = f"layer_{i:03d}"
        if name in cfgs:
          raise Wrong(f"trace: {name} has two MoE parts, and a trace has one per layer.")
        cfgs[name] = cfg
  return {
    name: {"K": choices[name]["expert_NK"].shape[1], "U": cfg.num_experts + len(cfg.virtual)}
    for name, cfg in cfgs.items()
  }


def head(cfg, corpus, choices, split: str, gates: str = "float16") -> formats.Head:
  """The head of a trace of a run."""
  dumped = json.dumps(config.dump(cfg.model), sort_keys=True)
  train = {name: getattr(cfg.train, name) for name in ("batch_size", "accumulate", "seed")}
  data = {"data": corpus.fingerprint, "tokenizer": cfg.data.tokenizer, "seq_len": cfg.data.seq_len}
  model = {"model": hashlib.sha256(dumped.encode()).hexdigest()[:16]}
  layers = sizes(cfg.model, choices)
  if not layers:
    raise Wrong("trace: the model has no MoE layer; there is nothing to record.")
  tokens = cfg.train.batch_size * cfg.data.seq_len
  return formats.Head(
    layers, tokens, gates, corpus.labels, {"split": split, **model, **train, **data}
  )


def block(step: int, index: int, batch, choices) -> formats.Block:
  """What is written of a batch; its arrays are on the host."""
  label_N = np.asarray(batch["label_BT"])[:, :-1].ravel()
  return formats.Block(step, index, formats.text_sum(batch["token_BT"]), label_N, choices)


def forced(found: formats.Block, layers: int, rows: slice, length: int) -> dict:
  """The arrays that lay a block over some rows of its batch, whose sequences have a length."""
  widest = max(mine["expert_NK"].shape[1] for mine in found.layers.values())
  shape = (len(found.label_N), layers, widest)
  forced_NLK, gate_NLK = np.full(shape, -2, np.int32), np.zeros(shape, np.float32)
  for name, mine in found.layers.items():
    i, K = int(name.removeprefix("layer_")), mine["expert_NK"].shape[1]
    forced_NLK[:, i, :K] = mine["expert_NK"]
    gate_NLK[:, i, :K] = 0 if mine["gate_NK"] is None else mine["gate_NK"]
  cut = lambda a: a.reshape(-1, length, *shape[1:])[rows]
  return {"forced_BTLK": cut(forced_NLK), "gate_BTLK": cut(gate_NLK)}


class Tracer:
  """Writes the trace of one stage of a run."""

  def __init__(self, at, folder, corpus, mesh):
    self.at, self.folder, self.corpus, self.mesh = at, folder, corpus, mesh
    self.writer, self.held_out = None, None
    precision, accumulate = dtypes.filled(at.cfg.precision), at.cfg.train.accumulate
    whole = NamedSharding(mesh, P())
    choices = make(at.model, precision, accumulate)
    both = lambda variables, batch, *rest: (batch, choices(variables, batch, *rest))
    self.choices = jax.jit(both, out_shardings=whole)

  def due(self, step: int) -> bool:
    """Whether a step is recorded."""
    every = self.at.cfg.train.trace_every
    return every > 0 and step % every == 0

  def write(self, state, batch, step: int) -> None:
    """Records a step that has not begun."""
    cfg, split = self.at.cfg, self.at.cfg.train.trace_split
    knobs = {name: value(step - 1) for name, value in phase.knobs(cfg).items()}
    params, key, index = state.params, rng.step_key(cfg.train.seed, step - 1), step - 1
    if split == "validation":
      params, key, index = params if state.ema is None else state.ema, None, 0
      batch = self.held_out = self.held_out or self._held_out()
    seen = self.choices({"params": params, **state.model_state}, batch, key, knobs)
    batch, choices = jax.device_get(seen)
    if not self.folder.writes:
      return
    if self.writer is None:
      path = self.folder.path / "traces" / f"stage_{self.at.index}.trace"
      start = head(cfg, self.corpus, choices, split)
      self.writer = formats.Writer(path, start, keep=step - 1)
    self.writer.add(block(step, index, batch, choices))

  def close(self) -> None:
    """No more steps."""
    if self.writer is not None:
      self.writer.close()

  def _held_out(self):
    """The first held-out batch: the same text in every recorded step."""
    size, share = self.at.cfg.train.batch_size, processes.share(self.mesh)
    with contextlib.closing(self.corpus.batches("validation", size, 0, *share)) as batches:
      return {name: meshes.batch(rows, self.mesh) for name, rows in next(batches).items()}


class Replay:
  """Lays the choices of a trace over the batches of a stage; steps it does not have stay free."""

  def __init__(self, at, corpus, part: int = 0):
    self.at, self.corpus, self.path, self.blocks = at, corpus, at.cfg.train.replay, {}
    self.part = part  # of the rows of a batch, that this process has

  def over(self, batch: dict, step: int) -> dict:
    """This process's rows of a batch, with what is forced in them."""
    if self.path is None:
      return batch
    if not self.blocks:
      self._open(batch)
    B, T = (n - i for i, n in enumerate(batch["token_BT"].shape))
    rows = slice(self.part * B, (self.part + 1) * B)
    found, first = self.blocks.get(step), next(iter(self.blocks.values()))
    ids_BTLK = forced(found or first, len(self.at.cfg.model.layers), rows, T)["forced_BTLK"]
    if found is None:
      ids_BTLK = np.full_like(ids_BTLK, -2)
    elif jax.process_count() == 1 and formats.text_sum(batch["token_BT"]) != found.text:
      raise Wrong(f"train.replay: {self.path} was recorded over other text at step {step}.")
    return {**batch, "forced_BTLK": ids_BTLK}

  def _open(self, batch):
    """Reads the trace; refuses one of another model or of other batches."""
    trace, at = formats.read(self.path), self.at
    if trace.damage or not trace.blocks:
      raise Wrong(trace.damage or f"train.replay: {self.path} has no step; record it again.")
    variables = {"params": at.template.params, **at.template.model_state}
    knobs = {name: value(0) for name, value in phase.knobs(at.cfg).items()}
    choices = make(at.model, dtypes.filled(at.cfg.precision))
    choices = jax.eval_shape(choices, variables, batch, None, knobs)
    diff.check(trace, sizes(at.cfg.model, choices), "this run's")
    theirs, mine = trace.head.about, head(at.cfg, self.corpus, choices, "train").about
    for name in ("split", "seed", "batch_size", "seq_len", "data"):
      if theirs.get(name) != mine[name]:
        raise Wrong(
          f"train.replay: in {self.path} {name} is {theirs.get(name)!r}, and in this run"
          f" {mine[name]!r}; its choices are for other batches. Use a trace of the same batches."
        )
    self.blocks = {found.step: found for found in trace.blocks}
