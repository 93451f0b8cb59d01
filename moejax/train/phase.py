"""A stage ready to run: its model and compiled functions, and the shapes of its state."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import dtypes, plugin, runs
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.optim import offload
from moejax.train import balancing, buffers, evaluate, migration, objective, stages, strict
from moejax.train import mesh as meshes
from moejax.train import step as steps


class Phase(typing.NamedTuple):
  """A stage: its functions are compiled when they are first called."""

  index: int
  cfg: typing.Any  # of the run, as the stage has it
  model: typing.Any
  start: typing.Callable
  step: typing.Callable
  evaluate: typing.Callable
  template: steps.TrainState  # shapes and shardings of the state


def schedule(section, steps: int):
  """step -> value, of a number, one number per layer, or a schedule's Config."""
  if not dataclasses.is_dataclass(section):
    return lambda step: jnp.asarray(section, jnp.float32)
  at = lambda step: plugin.module(section).value(step, steps, section)
  jax.eval_shape(at, 0)  # a schedule that does not fit the run is refused here
  return at


def knobs(cfg) -> dict:
  """name -> function of the step, over the whole run."""
  return {name: schedule(section, stages.ends(cfg)[-1]) for name, section in cfg.knobs}


class Program(typing.NamedTuple):
  """What a stage computes, from its config alone: nothing here is an array yet."""

  model: typing.Any
  first: typing.Callable  # (token_BT, key) -> state
  step: typing.Callable  # (state, batch) -> (state, metrics)
  template: steps.TrainState  # shapes and shardings of the state


def program(cfg, trainable, mesh) -> Program:
  """The functions of a stage whose run config is `cfg`, to be compiled for the context mesh."""
  model = plugin.module(cfg.model).Model(cfg.model)
  steps_in_all = stages.ends(cfg)[-1]
  curve = schedule(cfg.train.schedule, steps_in_all)
  lr = lambda step: cfg.train.lr_peak * curve(step)
  precision = dtypes.filled(cfg.precision)
  token_BT = jax.ShapeDtypeStruct(micro_batch(cfg), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = jax.eval_shape(model.init, key, token_BT)["params"]
  away, optim = offload.of_run(cfg), plugin.module(cfg.optim)
  section = dataclasses.replace(cfg.optim, offload=away != "none")
  tx = optim.make(section, lr, shapes, precision.moments, trainable, steps_in_all)
  loss_fn = objective.make(model, precision)
  if cfg.train.strict:
    strict.check(cfg, mesh)
  hooks = (balancing.controllers, buffers.refresh)
  if cfg.train.placement is not None:
    migration.check(cfg, mesh)
    hooks += (functools.partial(migration.loads, decay=cfg.train.placement.decay),)
  dtype = dtypes.dtype(precision.accumulate)
  step = steps.make(loss_fn, tx, cfg.model, cfg.train, hooks, lr, knobs(cfg), dtype)
  first = lambda token_BT, key: steps.init(
    model, tx, token_BT, cfg.train, dtypes.dtype(precision.params), key
  )
  template = meshes.placed(jax.eval_shape(first, token_BT, key), mesh)
  paths = [path for path, _ in runs.find(cfg.model.layers, moe.Config)]
  template = offload.placed(template, away, paths)
  if cfg.train.strict:
    template, step = strict.whole(template, mesh), strict.step(step, mesh)
  to = jax.tree.map(lambda leaf: leaf.sharding, template)
  first = jax.jit(first, out_shardings=to)  # of a key: all seeds have one program
  whole = NamedSharding(mesh, P())  # what is read on the host, by any process
  step = jax.jit(step, donate_argnums=0, out_shardings=(to, whole))
  return Program(model, first, step, template)


def make(index: int, cfg, trainable, corpus, mesh) -> Phase:
  """A stage on a corpus: its functions are compiled when they are first called."""
  _check_modalities(cfg.model, corpus)
  model, first, step, template = program(cfg, trainable, mesh)
  key = jax.random.key(cfg.train.seed)
  start = lambda token_BT: first(token_BT, key)
  sizes = (corpus.tokenizer.bytes_V, len(corpus.labels))
  scores = evaluate.make(model, dtypes.filled(cfg.precision), *sizes)
  scores = jax.jit(scores, out_shardings=NamedSharding(mesh, P()))
  return Phase(index, cfg, model, start, step, scores, template)


def _check_modalities(model_cfg, corpus):
  """Routers that know some number of modalities get text of so many."""
  for layer in set(model_cfg.layers):
    for _, part in runs.sections(layer):
      known = getattr(part, "modalities", corpus.modalities)
      if known != corpus.modalities:
        raise Wrong(
          f"{plugin.stem(part)}: it knows {known} modalities and data.modalities makes"
          f" {corpus.modalities} (a list each, and one of all other labels); change one of them."
        )


def micro_batch(cfg) -> tuple[int, int]:
  """The shape of the tokens that the model sees at once."""
  return cfg.train.batch_size // cfg.train.accumulate, cfg.data.seq_len
