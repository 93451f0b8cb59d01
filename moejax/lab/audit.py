"""The audit of a mesh: does it compute what one device computes?

A training step's gradients, statistics and router state are taken twice: on the mesh, with the
dispatch, rematerialisation and accumulation of the run, and on one device, densely and in float64.
Both are forced to the choices that the run makes on its mesh, so that what differs is arithmetic;
choices that the oracle would have made otherwise are counted apart, with their margins. Parameters
are those of a start, with noise on what starts constant; nothing is random; knobs have their first
value. `python -m moejax audit` prints the table; moejax/lab/audit_grid.py has its cells.
"""

import contextlib
import json
import types
import typing
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import config, dtypes, plugin, runs
from moejax.core.plugin import Wrong
from moejax.lab import audit_grid
from moejax.layers import moe
from moejax.train import balancing, buffers, metrics, objective, phase, processes, tracing
from moejax.train import mesh as meshes
from moejax.train import step as steps

ALLOWED = {"float64": 1e-6, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.2}
FLOOR = 1e-3  # of the largest gradient: below it, an error counts as a part of this, not of a leaf
NOISE = 0.1  # on parameters that start constant: their gradients would be those of a special case


class Leaf(typing.NamedTuple):
  """One array against the oracle's."""

  name: str
  size: float  # its largest entry, in the oracle
  error: float  # the largest difference, as a part of that
  ratio: float  # projection on the oracle's: 2 counted twice, 0.5 half of it lost


class Row(typing.NamedTuple):
  """A cell: its arrays by kind, and the choices; or the sentence with which it was refused."""

  cell: dict
  loss: float = 0.0
  gradients: list[Leaf] = []
  statistics: list[Leaf] = []
  state: list[Leaf] = []
  choices: int = 0
  flipped: int = 0  # choices that the oracle made otherwise
  margin: float = 0.0  # the widest of theirs, in probability
  allowed: float = 0.0
  refused: str = ""

  @property
  def misses(self) -> list[Leaf]:
    """What is further off than is allowed."""
    leaves = [Leaf("loss", 1.0, self.loss, 1.0), *self.gradients, *self.statistics, *self.state]
    return [leaf for leaf in leaves if not leaf.error <= self.allowed]


class Step(typing.NamedTuple):
  """What is taken of one step, on the host."""

  loss: float
  gradients: dict
  statistics: dict
  state: dict


def run(section: dict, cells: list[dict], batch: dict, oracles: dict | None = None):
  """One Row for each cell laid over the section of a run, on as many rows of `batch` as it has.

  `batch` is whole, on the host; `oracles` keeps what is made on one device, for other calls with
  the same batch.
  """
  oracles = {} if oracles is None else oracles
  for cell in cells:
    try:
      cfg = config.resolve(audit_grid.laid(section, cell))
      about = [
        _without(config.dump(cfg.model) | {"remat": "", "pipeline": None}, "dispatch"),
        cfg.train.accumulate,
        cfg.train.batch_size,
      ]
      about = json.dumps(about, sort_keys=True)  # what an oracle depends on
      if about not in oracles:
        oracles[about] = Oracle(cfg, {k: a[: cfg.train.batch_size] for k, a in batch.items()})
      yield examine(cfg, cell, oracles[about], oracles[about].batch)
    except Wrong as reason:
      yield Row(cell, refused=str(reason))


def examine(cfg, cell: dict, oracle: "Oracle", batch: dict) -> Row:
  """One config on its mesh against its oracle."""
  mesh = meshes.make(cfg.mesh)
  meshes.check(cfg, mesh)
  with meshes.entered(mesh, cfg.roles):
    put = lambda leaf, to: jax.make_array_from_callback(leaf.shape, to, lambda at: leaf[at])
    variables = jax.tree.map(put, oracle.variables, meshes.shardings(oracle.variables, mesh))
    rows = meshes.batch(np.zeros((meshes.rows(mesh), 1), np.int8), mesh).sharding
    here = {name: put(array, rows) for name, array in batch.items()}
    chosen = (
      processes.fetch(chooser(cfg)(variables, here, None, _knobs(cfg))) if oracle.free else {}
    )
    forced = laid_over(chosen, batch, cfg) if chosen else {}
    here |= {name: put(array, rows) for name, array in forced.items()}
    found = Step(*processes.fetch(stepper(cfg)(variables, here, _knobs(cfg))))
  want = oracle.step(forced)
  own = {plugin.stem(part.dispatch) for _, part in runs.find(cfg.model.layers, moe.Config)}
  is_own = lambda name: name.split("/")[-2] in own
  statistics = {name: leaf for name, leaf in _flat(found.statistics).items() if not is_own(name)}
  row = Row(
    cell,
    loss=float(abs(found.loss - want.loss) / abs(want.loss)),
    gradients=leaves(_flat(found.gradients), _flat(want.gradients), FLOOR),
    statistics=leaves(statistics, _flat(want.statistics)),
    state=leaves(_flat(found.state), _flat(want.state)),
    allowed=ALLOWED[str(dtypes.filled(cfg.precision).compute)],
  )
  return row._replace(**differing(chosen, oracle.free))


def stepper(cfg):
  """step(variables, batch, knobs) -> what a Step has, of one training step without its update."""
  model = plugin.module(cfg.model).Model(cfg.model)
  inner = objective.make(model, cfg.precision)
  loss_fn = lambda params, state, one, key, *rest: inner(params, state, one, None, *rest)
  dtype = dtypes.dtype(cfg.precision.accumulate)

  def step(variables, batch, knobs):
    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    at: typing.Any = types.SimpleNamespace(params=params, model_state=state)
    key = jax.random.key(0)
    grads, aux = steps.grads_of(loss_fn, at, batch, key, knobs, cfg.train.accumulate, dtype)
    for hook in (balancing.controllers, buffers.refresh):
      _, state = hook(params, state, aux["layers"], knobs, cfg.model)
    loss = (aux["task"] + aux["balance"]) / jnp.maximum(aux["weight"], 1)
    return loss, grads, aux["layers"], state.get("router_state", {})

  return jax.jit(step)


def chooser(cfg):
  """choices(variables, batch, key, knobs) -> {layer_NNN: {expert_NK, boundary_N, ...}}."""
  model, precision = plugin.module(cfg.model).Model(cfg.model), dtypes.filled(cfg.precision)
  return jax.jit(tracing.make(model, precision, cfg.train.accumulate))


class Oracle:
  """The same model without a mesh: dense dispatch in float64 on one CPU."""

  def __init__(self, cfg, batch):
    self.batch, self.device = batch, jax.local_devices(backend="cpu")[0]
    self.mesh = meshes.make("data:1", [self.device])
    self.variables = self._start(cfg)
    for dispatch in ("dense", "einsum"):  # dense refuses routers that mix tokens
      self.cfg = _plain(cfg, dispatch)
      with self._wide():
        self.steps, self.chooser = stepper(self.cfg), chooser(self.cfg)
      try:
        self.free, self.found = self._choices(), {}  # what it would choose; steps by what is forced
        moved = self.step(self._nothing()).state
        break
      except Wrong:
        if dispatch == "einsum":
          raise
    if "router_state" in self.variables:  # that of a second step, which rules have moved
      to = lambda new, old: np.asarray(new, old.dtype)
      self.variables["router_state"] = jax.tree.map(to, moved, self.variables["router_state"])
      self.free, self.found = self._choices(), {}

  def step(self, forced: dict) -> Step:
    """A step with forced choices."""
    key = b"".join(array.tobytes() for array in forced.values())
    if key not in self.found:
      with self._wide() as put:
        batch, knobs = put({**self.batch, **forced}), put(jax.device_get(_knobs(self.cfg)))
        self.found[key] = Step(*jax.device_get(self.steps(put(self.variables), batch, knobs)))
    return self.found[key]

  def _choices(self) -> dict:
    """{} where no ids can be forced: where tokens are mixed, or a layer has two MoE parts."""
    places = [name for name, _ in metrics.moe_layers(self.cfg.model)]
    if len(set(places)) < len(places):
      return {}
    try:
      with self._wide() as put:
        knobs = put(jax.device_get(_knobs(self.cfg)))
        return jax.device_get(self.chooser(put(self.variables), put(self.batch), None, knobs))
    except Wrong as reason:
      if str(reason).startswith("trace:"):
        return {}
      raise

  def _nothing(self) -> dict:
    """The batch's entry that forces nothing: one program for what is forced and what is not."""
    forced = laid_over(self.free, self.batch, self.cfg) if self.free else {}
    return {name: np.full_like(array, -2) for name, array in forced.items()}

  def _start(self, cfg) -> dict:
    """Variables as they start, with noise on parameters that are one number throughout."""
    model, draw = plugin.module(cfg.model).Model(cfg.model), np.random.default_rng(cfg.train.seed)
    token_BT = jnp.zeros(phase.micro_batch(cfg), jnp.int32)
    with jax.set_mesh(self.mesh):
      start = jax.device_get(jax.jit(model.init)(jax.random.key(cfg.train.seed), token_BT))
    start.pop("taps", None)

    def off(leaf):
      constant = np.ptp(leaf) == 0 and np.issubdtype(leaf.dtype, np.floating)
      return leaf + NOISE * draw.normal(size=leaf.shape).astype(leaf.dtype) if constant else leaf

    return {**start, "params": jax.tree.map(off, start["params"])}

  @contextlib.contextmanager
  def _wide(self):
    """Inside, 64 bits are on, and code that asks for jnp.float32 gets float64."""
    wide = lambda a: np.asarray(a, np.float64) if np.issubdtype(a.dtype, np.floating) else a
    put = lambda values: jax.device_put(jax.tree.map(wide, values), self.device)
    patch = unittest.mock.patch.object(jnp, "float32", jnp.float64)
    with jax.enable_x64(True), jax.set_mesh(self.mesh), patch:
      yield put


def laid_over(chosen: dict, batch: dict, cfg) -> dict:
  """The ids of `chosen` as a batch takes them; the router weighs them."""
  length = batch["token_BT"].shape[1] - 1
  found = tracing.block(0, 0, batch, chosen)
  laid = tracing.forced(found, len(cfg.model.layers), slice(None), length)
  return {"forced_BTLK": laid["forced_BTLK"]}


def leaves(got: dict, want: dict, floor: float = 0.0) -> list[Leaf]:
  """Every array of `got` beside that of the same name.

  >>> [leaf] = leaves({"w_D": np.array([2.0, 4.0])}, {"w_D": np.array([1.0, 2.0])})
  >>> leaf.error, leaf.ratio
  (1.0, 2.0)
  """
  largest = max((float(np.abs(w).max(initial=0)) for w in want.values()), default=0.0)
  found = []
  for name, g in got.items():
    g, w = np.asarray(g, np.float64), np.asarray(want[name], np.float64)
    size = float(np.abs(w).max(initial=0))
    scale = max(size, floor * largest, 1e-30)
    error = float(np.abs(g - w).max(initial=0)) / scale
    ratio = float((g * w).sum() / max((w * w).sum(), 1e-300)) if size else 1.0
    found.append(Leaf(name, size, error, ratio))
  return found


def differing(mine: dict, theirs: dict) -> dict:
  """The choices that differ, and the widest margin of those of `theirs`.

  >>> layer = lambda ids: {"expert_NK": np.array([ids]), "boundary_N": np.array([0.1])}
  >>> one = lambda *ids: {"layer_000": layer(ids)}
  >>> differing(one(0, 2), one(2, 1)), differing(one(0, 2), one(2, 0))["flipped"]
  ({'choices': 2, 'flipped': 1, 'margin': 0.1}, 0)
  """
  total, flipped, margin = 0, 0, 0.0
  for name, layer in mine.items():
    a_NK, b_NK = (np.asarray(side["expert_NK"]) for side in (layer, theirs[name]))
    missing_NK = (a_NK >= 0) & ~(a_NK[:, :, None] == b_NK[:, None]).any(2)
    total, flipped = total + int((a_NK >= 0).sum()), flipped + int(missing_NK.sum())
    at_N = np.abs(theirs[name]["boundary_N"])[missing_NK.any(1)]
    margin = max(margin, float(at_N.max(initial=0)))
  return {"choices": total, "flipped": flipped, "margin": margin}


def _flat(values) -> dict:
  paths = jax.tree_util.tree_flatten_with_path(values)[0]
  return {"/".join(key.key for key in path): leaf for path, leaf in paths}


def _knobs(cfg) -> dict:
  return {name: at(0) for name, at in phase.knobs(cfg).items()}


def _without(section, key: str):
  """A section without what it says under a key, wherever that is."""
  if isinstance(section, list):
    return [_without(item, key) for item in section]
  if not isinstance(section, dict):
    return section
  return {name: _without(item, key) for name, item in section.items() if name != key}


def _plain(cfg, dispatch: str):
  """The config of the oracle: no mesh, no remat, float64, the dispatch of definition."""
  dumped = audit_grid.laid(config.dump(cfg), {"mesh": "data:1", "remat": "none"})
  dumped["model"] = audit_grid.everywhere(dumped["model"], "dispatch", {"name": dispatch})
  names = ("params", "compute", "residual", "accumulate")
  dumped["precision"] |= dict.fromkeys(names, "float64") | {"moments": None}
  with jax.enable_x64(True):
    return config.resolve(dumped)
