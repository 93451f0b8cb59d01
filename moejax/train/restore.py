"""A trained run, read back for looking at: notebooks, `generate`, studies."""

import pathlib
import typing

import jax
import jax.numpy as jnp

from moejax.core import config, plugin
from moejax.core.plugin import Wrong
from moejax.data import text
from moejax.train import checkpoint, migration, phase
from moejax.train import mesh as meshes


class Trained(typing.NamedTuple):
  step: int
  cfg: typing.Any  # of the run, as its last stage had it
  model: typing.Any
  variables: dict  # the averaged parameters, where there are
  corpus: text.Corpus


class _Wanted(typing.NamedTuple):
  params: dict
  model_state: dict
  ema: dict | None
  opt_state: None = None


def load(workdir, step: int | None = None) -> Trained:
  """The model and its variables at a checkpoint: the newest one, unless `step` says which."""
  folder = pathlib.Path(workdir) / "checkpoints"
  if not folder.is_dir():
    raise Wrong(f"{str(workdir)!r} holds no checkpoints; give the --workdir of a run.")
  checkpoints = checkpoint.Checkpoints(folder, keep=None)
  known = checkpoints.steps()
  if not known or (step is not None and step not in known):
    raise Wrong(f"{str(folder)!r} has checkpoints {known[::-1]}, not {step}; give one of these.")
  step = known[0] if step is None else step
  meta = checkpoints.meta(step)
  cfg = config.resolve(meta["config"])
  model = plugin.module(cfg.model).Model(cfg.model)
  token_BT = jax.ShapeDtypeStruct(phase.micro_batch(cfg), jnp.int32)
  start = lambda key: migration.started(
    model.init(key, jnp.zeros(token_BT.shape, int)), cfg.train.placement, cfg.model
  )
  shapes = jax.eval_shape(start, jax.random.key(0))
  shapes = meshes.placed(shapes, meshes.make("", jax.devices()[:1]))
  params = shapes.pop("params")
  average = params if "ema" in meta["items"] else None
  found = checkpoints.restore(step, _Wanted(params, shapes, average))
  checkpoints.close()
  variables = {"params": found["ema"] or found["params"], **found["model_state"]}
  return Trained(step, cfg, model, variables, text.open(cfg.data, cfg.train.seed))
