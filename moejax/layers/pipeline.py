"""Pipeline parallelism inside the program: stages work on parts of a batch, one behind the other.

Paper:  Huang et al. 2019 (GPipe), arXiv:1811.06965; the circular schedule: Narayanan et al. 2021,
        arXiv:2104.04473 (interleaved stages, here with all micro-batches forward first).
Section: `model.pipeline`, read where the mesh has an axis `stage` of more than one device. The run
        of the most layers whose repeats the stages divide is cut over them; the layers before and
        behind it are computed by all stages alike.
Cost:   V M + S - 1 ticks of one micro-batch through 1 / (S V) of the layers each, of which a stage
        is idle in S - 1. A tick moves one micro-batch to the next stage. Besides, x leaves the
        last stage, and its gradient the first, in one sum over the stages each. With V > 1 rounds
        the weights move once forward, and their gradients back: storage is cut in S parts of
        neighbours, and stage s works on the blocks s, S + s, 2 S + s, ...

Only the schedule differs from one device: a loss, its gradients, sums, balance losses and state are
the same to rounding, whatever M is. What is drawn at random differs: a layer draws for each
micro-batch with a key of its own. Micro-batches are every M-th row (or group of rows in which
tokens compete), so that each stays spread over the devices as the batch is.
"""

import dataclasses
import functools
import math
import re
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax.core import runs, sums
from moejax.core.plugin import Wrong

AXIS = "stage"


@dataclasses.dataclass(frozen=True)
class Config:
  microbatches: int | None = None  # M; None = as many as there are stages
  rounds: int = 1  # V, how often a micro-batch passes each stage: 1 is GPipe, more are circular

  def __post_init__(self):
    if min(self.rounds, self.microbatches or 1) < 1 or self.microbatches == 0:
      raise Wrong(
        f"pipeline: microbatches is {self.microbatches} and rounds is {self.rounds}; both must be"
        " at least 1."
      )


class Schedule(typing.NamedTuple):
  """Who works on what, and when: stage s does at tick t what has number t - s."""

  stages: int  # S
  microbatches: int  # M
  rounds: int = 1  # V

  @property
  def ticks(self) -> int:
    """Of a forward pass.

    >>> Schedule(4, 8).ticks, Schedule(4, 8, rounds=2).ticks
    (11, 19)
    """
    return self.rounds * self.microbatches + self.stages - 1

  @property
  def bubble(self) -> float:
    """The part of its time in which a stage is idle.

    >>> Schedule(4, 12).bubble, Schedule(4, 12, rounds=3).bubble
    (0.2, 0.07692307692307693)
    """
    return (self.stages - 1) / self.ticks

  def at(self, tick, stage):
    """(round, micro-batch, whether there is such work)."""
    number = tick - stage
    busy = (number >= 0) & (number < self.rounds * self.microbatches)
    number = jnp.clip(number, 0, self.rounds * self.microbatches - 1)
    return number // self.microbatches, number % self.microbatches, busy

  def home(self, tick):
    """(micro-batch that comes back to the first stage before this tick, whether one does)."""
    return (tick - self.stages) % self.microbatches, tick >= self.stages

  def exchanges(self) -> list[list[tuple[int, int]]]:
    """For each of V exchanges of weights: (block sent, stage that it is for) of every stage.

    Stage s stores the blocks V s .. V s + V - 1, and block b is for stage b mod S. In each
    exchange every stage sends one and gets one: with g = gcd(V, S), stages of another s g / S start
    with another block, so that their targets differ mod g, and those of one s g / S differ by g.

    >>> Schedule(4, 4, rounds=2).exchanges()
    [[(0, 0), (0, 2), (1, 1), (1, 3)], [(1, 1), (1, 3), (0, 0), (0, 2)]]
    """
    S, V = self.stages, self.rounds
    first = [s * math.gcd(V, S) // S for s in range(S)]
    block = lambda r, s: (r + first[s]) % V
    return [[(block(r, s), (V * s + block(r, s)) % S) for s in range(S)] for r in range(V)]


def stages() -> int:
  """How many the mesh in context has; inside one of them, none."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if AXIS in mesh.manual_axes else mesh.shape.get(AXIS, 1)


def schedule(cfg: Config, stages: int) -> Schedule:
  """Of so many stages; refuses a round that would begin before the one before it is through."""
  found = Schedule(stages, cfg.microbatches or stages, cfg.rounds)
  if found.rounds > 1 and found.microbatches < stages:
    raise Wrong(
      f"pipeline: {found.microbatches} micro-batches cannot go round {stages} stages"
      f" {found.rounds} times without a gap; set model.pipeline.microbatches to at least {stages}."
    )
  return found


def longest(layers: tuple, cfg: Config, stages: int) -> runs.Run:
  """The run that is cut over the stages; Wrong where there is none."""
  parts, found = stages * cfg.rounds, runs.fold(layers)
  size = lambda run: run.repeats * len(run.pattern)
  fitting = [run for run in found if run.repeats % parts == 0]
  if not fitting:
    most = max(found, key=size)
    raise Wrong(
      f"pipeline: stage:{stages} with {cfg.rounds} rounds needs a number of equal layers, or of"
      f" equal groups of layers, that {parts} divides, and the longest run of the model,"
      f" {most.name}, has {most.repeats}; change model.layers, model.pipeline.rounds or the mesh."
    )
  return max(fitting, key=size)


def check(model_cfg, rows: int, shards: int, stages: int):
  """Refuses a model or micro-batches of a batch that so many stages cannot share."""
  if stages == 1:
    return
  longest(model_cfg.layers, model_cfg.pipeline, stages)
  M = schedule(model_cfg.pipeline, stages).microbatches
  if rows % (M * shards):
    raise Wrong(
      f"pipeline: {rows} rows do not form {M} micro-batches that {shards} devices divide; use a"
      f" multiple of {M * shards} (train.batch_size over train.accumulate), or set"
      " model.pipeline.microbatches."
    )


def unit(run: runs.Run, rows: int, seq_len: int, M: int) -> int:
  """Neighbouring rows that stay together: those whose tokens compete in some layer of the run.

  Wrong where they do not form M micro-batches.
  """
  N, together = rows * seq_len, seq_len
  for layer in run.pattern:
    for _, cfg in runs.sections(layer):
      groups = getattr(cfg, "groups", None) if hasattr(cfg, "router") else None
      if groups and N % groups == 0:  # else the layer itself refuses
        together = math.lcm(together, N // groups)
  if N % (M * together):
    raise Wrong(
      f"pipeline: tokens compete over {together // seq_len} of {rows} rows (model.moe.groups),"
      f" which {M} micro-batches would cut; set model.moe.groups to a multiple of {M} or to None."
    )
  return together // seq_len


def run(body, plan: Schedule, rows: int, variables, moving, ctx, per_layer):
  """The layers of one run -> (moving, sums), as one scan over them would give.

  body(variables, moving, ctx, per_layer) is that scan, of any number of layers. Leaves of
  `variables`, `per_layer` and the sums have the layers first. `moving` is what goes from layer to
  layer, `rows` how many rows stay together (`unit`). Names of arrays say where tokens are: N or B.
  """
  M, units = plan.microbatches, moving["x_BTD"].shape[0] // rows
  split, join = functools.partial(_split, M=M, units=units), functools.partial(_join, units=units)
  repeated = lambda a: jnp.broadcast_to(a[None], (M, *a.shape))
  parts = _by_token(split, (ctx, per_layer)), _by_token(split, moving, otherwise=repeated)
  (ctx, per_layer), moving = parts
  inside = functools.partial(_stage, body, plan)
  in_specs = (P(AXIS), P(AXIS), P(AXIS), P(), P())
  specs = {"in_specs": in_specs, "out_specs": (P(AXIS), P(None, AXIS)), "axis_names": {AXIS}}
  # check_vma is off: what is inside carries no types of varying axes
  on_stages = jax.shard_map(inside, **specs, check_vma=False)
  moving, seen = on_stages(jnp.arange(plan.stages), variables, per_layer, ctx, moving)
  # all stages but the first have zeros: an exchange forward, and none for the gradient
  moving = jax.tree.map(lambda a: lax.reduce_sum(a, (0,)), moving)
  seen = jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), seen)  # it was [V, S, layers, ...]
  return _by_token(join, moving, otherwise=lambda a: a[-1]), _by_token(join, seen)


def _stage(body, plan, stage_1, variables, per_layer, ctx, moving):
  """All ticks of one stage -> (moving, from the first stage alone; sums [V, 1, layers, ...])."""
  stage, S = stage_1[0], plan.stages
  blocks = jax.tree.map(functools.partial(_in_rounds, plan, stage), (variables, per_layer))
  dtypes = jax.tree.map(lambda a: a.dtype, blocks)
  # so that the gradients of all ticks add up in float32, whatever the weights are
  blocks = jax.tree.map(lambda a: a.astype(jnp.float32) if _is_narrow(a) else a, blocks)

  def work(moving, round_, m):
    mine = jax.tree.map(lambda a, dtype: _at(a, round_).astype(dtype), blocks, dtypes)
    take = lambda a, axis: _at(a, m, axis - 1)
    weights, layer = mine[0], _by_token(take, mine[1])
    if layer["key"] is not None:
      layer["key"] = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, m)))(layer["key"])
    return body(weights, moving, _by_token(take, ctx), layer)

  def tick(state, t):
    kept, arrived, total = state
    kept, (round_, m, busy) = _put(kept, arrived, *plan.home(t)), plan.at(t, stage)
    given = jax.tree.map(lambda a, b: jnp.where(stage == 0, _at(a, m), b), kept, arrived)
    moving, seen = work(given, round_, m)
    onwards = [(s, (s + 1) % S) for s in range(S)]
    arrived = jax.tree.map(lambda a: lax.ppermute(a, AXIS, onwards), moving)
    return (kept, arrived, _add(total, seen, round_, m, busy)), None

  start = jax.tree.map(lambda a: a[0], moving)  # for stages that wait: numbers of the right kind
  state = (moving, start, _nothing(jax.eval_shape(work, start, 0, 0)[1], plan))
  (kept, arrived, total), _ = lax.scan(tick, state, jnp.arange(plan.ticks))
  kept = _put(kept, arrived, *plan.home(plan.ticks))
  of_first = lambda a: jnp.where(stage == 0, a, jnp.zeros_like(a))[None]
  return jax.tree.map(of_first, kept), jax.tree.map(lambda a: a[:, None], total)


def _at(a, i, axis: int = 0):
  return lax.dynamic_index_in_dim(a, i, axis, keepdims=False)


def _is_narrow(a) -> bool:
  return jnp.issubdtype(a.dtype, jnp.floating) and a.dtype.itemsize < 4


def _put(kept, arrived, m, is_one):
  """`kept`, where the first stage has all micro-batches between rounds, with one that came back."""
  one = lambda all_M, new: jnp.where(is_one, new, _at(all_M, m))
  put = lambda all_M, new: lax.dynamic_update_index_in_dim(all_M, one(all_M, new), m, 0)
  return jax.tree.map(put, kept, arrived)


def _in_rounds(plan, stage, leaf):
  """[V l, ...] as a stage stores them -> [V, l, ...], its own block of layers for each round."""
  S, V = plan.stages, plan.rounds
  stored = leaf.reshape(V, -1, *leaf.shape[1:])
  found = stored
  for sends in plan.exchanges() if V > 1 else ():
    block = jnp.array([block for block, _ in sends])[stage]
    to = [(s, target) for s, (_, target) in enumerate(sends)]
    came = lax.ppermute(_at(stored, block), AXIS, to)
    rounds = {target: (V * s + block) // S for s, (block, target) in enumerate(sends)}
    at = jnp.array([rounds[s] for s in range(S)])[stage]
    found = lax.dynamic_update_index_in_dim(found, came, at, 0)
  return found


def _nothing(shapes, plan):
  """The sums of a stage before its first tick: [V, l, ...], and by token [V, l, M, ...]."""
  whole = lambda s, *shape: jax.ShapeDtypeStruct((plan.rounds, *shape), s.dtype)
  by_token = lambda s, axis: whole(s, *s.shape[:axis], plan.microbatches, *s.shape[axis:])
  return sums.zeros(_by_token(by_token, shapes, otherwise=lambda s: whole(s, *s.shape)))


def _add(total, seen, round_, m, busy):
  """The sums with those of a tick, if it was one of work."""

  def one(path, all_V, new):
    old, axis = _at(all_V, round_), _token_axis(path, new)
    if axis is None:
      both = sums.joined(path, old, new)
    else:
      both = lax.dynamic_update_index_in_dim(old, new, m, axis)
    return lax.dynamic_update_index_in_dim(all_V, jnp.where(busy, both, old), round_, 0)

  return jax.tree_util.tree_map_with_path(one, total, seen)


def _by_token(fn, tree, otherwise=lambda leaf: leaf):
  """fn(leaf, axis) of leaves with an axis of tokens or rows, which their names tell."""

  def one(path, leaf):
    axis = _token_axis(path, leaf)
    return otherwise(leaf) if axis is None else fn(leaf, axis)

  return jax.tree_util.tree_map_with_path(one, tree)


def _token_axis(path, leaf) -> int | None:
  """Counted from the right, since layers and micro-batches come first."""
  name = str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
  letters = re.search("_([A-Z]+)$", name)
  found = [letters[1].index(a) for a in "NB" if a in letters[1]] if letters else []
  return leaf.ndim - len(letters[1]) + found[0] if letters and found else None


def _split(a, axis: int, M: int, units: int):
  """[..., N, ...] -> [..., M, N / M, ...]: micro-batch m has the units m, M + m, ...

  >>> _split(jnp.arange(8), 0, 2, 4).tolist()
  [[0, 1, 4, 5], [2, 3, 6, 7]]
  """
  before, N, after = a.shape[:axis], a.shape[axis], a.shape[axis + 1 :]
  cut = a.reshape(*before, units // M, M, N // units, *after)
  return jnp.moveaxis(cut, axis + 1, axis).reshape(*before, M, N // M, *after)


def _join(a, axis: int, units: int):
  """The inverse; here `axis` is that of N / M.

  >>> _join(jnp.array([[0, 1, 4, 5], [2, 3, 6, 7]]), 1, 4).tolist()
  [0, 1, 2, 3, 4, 5, 6, 7]
  """
  before, (M, n), after = a.shape[: axis - 1], a.shape[axis - 1 : axis + 1], a.shape[axis + 1 :]
  cut = a.reshape(*before, M, units // M, M * n // units, *after)
  return jnp.moveaxis(cut, axis - 1, axis).reshape(*before, M * n, *after)
