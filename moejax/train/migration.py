"""Experts that move in training: loads are averaged, and tables change at the boundary of steps.

Section: `train.placement` (train/placement.py), with model.moe.stored where experts have copies.

The average load and the table of a layer are model state, so a checkpoint has both, and a resumed
run goes on as if it had never stopped. New tables are computed on the host, the same ones by every
process; one compiled program then moves parameters, moments and averages of all layers. The step
has the table as an argument and is not compiled again. A table names slots, not owners: a run may
be resumed on another number of owners that divides the slots, who are evened out from then on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import memory, runs, tree
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.train import mesh as meshes
from moejax.train import placement, processes


def check(cfg, mesh) -> None:
  """Refuses slots that the experts and their copies cannot fill, and a model without experts."""
  found = runs.find(cfg.model.layers, moe.Config)
  if not found:
    raise Wrong("train.placement: no layer has experts; set it to None.")
  for _, layer in found:
    shape = (owners(cfg, mesh), layer.stored or layer.num_experts, cfg.train.placement.copies)
    placement.assigned(np.ones(layer.num_experts), *shape)


def owners(cfg, mesh) -> int:
  """The parts into which the slots of experts are cut."""
  asked = None if cfg.train.placement is None else cfg.train.placement.owners
  return asked or meshes.owners(cfg, mesh)


def started(variables: dict, cfg, model_cfg) -> dict:
  """Variables with a column for each copy in the tables, and a load where one is kept."""
  tables = variables.get("placement", {})
  for path, layer in runs.find(model_cfg.layers, moe.Config):
    here = dict(tree.at(tables, path))
    slot_LER = here["slot_ER"]
    column_R = jnp.arange(cfg.copies if cfg else 1) % slot_LER.shape[-1]
    here["slot_ER"] = slot_LER[..., column_R]
    if cfg:
      here.setdefault("load_E", jnp.zeros((len(slot_LER), layer.num_experts), jnp.float32))
    tables = tree.put(tables, path, here)
  return {**variables, "placement": tables} if tables else variables


def loads(params, model_state, layer_sums, knobs, model_cfg, decay: float):
  """A hook: the choices of the step come into the average load of every layer."""
  tables = model_state["placement"]
  for path, layer in runs.find(model_cfg.layers, moe.Config):
    load_LE = tree.at(tables, path)["load_E"]
    seen_LE = tree.at(layer_sums, path)["count_U"][:, : layer.num_experts]
    load_LE = decay * load_LE + (1 - decay) * seen_LE.astype(jnp.float32)
    tables = tree.put(tables, (*path, "load_E"), load_LE)
  return params, {**model_state, "placement": tables}


def over(fn, params, tables: dict, model_cfg) -> dict:
  """fn(layer, slot_ER) over every layer of which `tables` has some: placement.summed or copied."""
  for path, layer in runs.find(model_cfg.layers, moe.Config):
    if tables and (layer.stored or 0) > layer.num_experts:
      owned, slot_LER = tree.at(params, path), tree.at(tables, path)["slot_ER"]
      mine = placement.by_slot(owned)
      by_layer = _one_by_one if memory.any_away(mine) else jax.vmap
      params = tree.put(params, path, {**owned, **by_layer(fn)(mine, slot_LER)})
  return params


def _one_by_one(fn):
  """fn over stacked layers, those that are away one after the other."""

  def act(_, part):
    leaves, *tables = part
    new = fn(memory.near(leaves), *tables)
    return None, jax.tree.map(memory.back, new, leaves)

  return lambda leaves, *tables: jax.lax.scan(act, None, (leaves, *tables))[1]


def moved(state, tables: dict):
  """The train state with its experts in the slots of other tables, to be compiled.

  `tables` is {path of a stack: slot_LER}. Layer by layer, so that rows on their way are those of
  one layer.
  """
  old, new = state.model_state["placement"], state.model_state["placement"]

  def along(whole):
    for path, new_LER in tables.items():
      layer = tree.at(whole, path)
      mine = placement.by_slot(layer)
      if mine:  # frozen leaves have no moments
        there = _one_by_one(placement.moved)(mine, tree.at(old, path)["slot_ER"], new_LER)
        whole = tree.put(whole, path, {**layer, **there})
    return whole

  is_tree = lambda node: isinstance(node, dict)
  like_params = lambda node: along(node) if is_tree(node) else node
  for path, new_LER in tables.items():
    new = tree.put(new, (*path, "slot_ER"), new_LER)
  return dataclasses.replace(
    state,
    params=along(state.params),
    opt_state=jax.tree.map(like_params, state.opt_state, is_leaf=is_tree),
    ema=None if state.ema is None else along(state.ema),
    model_state={**state.model_state, "placement": new},
  )


def home(at, mesh, state):
  """The state with expert e in slot e again, as a transform of the model expects it."""
  cfg = at.cfg.train.placement
  if cfg is None:
    return state
  mover = Mover(at, mesh)
  for path, layer in mover.layers.items():
    if (layer.stored or 0) > layer.num_experts:
      raise Wrong(
        f"stages.transform: {'/'.join(path)} has {layer.stored} slots for {layer.num_experts}"
        " experts, and a transform knows of no copies; leave model.moe.stored out."
      )
  plain = lambda table_LER: np.broadcast_to(np.arange(table_LER.shape[1])[:, None], table_LER.shape)
  tables = {path: plain(tree.at(state.model_state["placement"], path)["slot_ER"])
            for path in mover.layers}  # fmt: skip
  return mover.program(state, mover.put(tables))


class Mover:
  """Moves the experts of a stage that has `train.placement`; its program is compiled here."""

  def __init__(self, at, mesh):
    self.cfg, self.model_cfg = at.cfg.train.placement, at.cfg.model
    self.owners = owners(at.cfg, mesh)
    self.layers = dict(runs.find(self.model_cfg.layers, moe.Config))
    tables = [
      tree.at(at.template.model_state["placement"], path)["slot_ER"] for path in self.layers
    ]
    self.place = tables[0].sharding  # that of all tables: whole on every device
    to = jax.tree.map(lambda leaf: leaf.sharding, at.template)
    move = lambda state, tables: moved(state, dict(zip(self.layers, tables, strict=True)))
    move = jax.jit(move, donate_argnums=0, out_shardings=to)
    self.program = move.lower(at.template, tables).compile()

  def due(self, step: int) -> bool:
    """Whether experts may move after this step."""
    return step % self.cfg.every == 0

  def __call__(self, state):
    """(state, what is logged of every layer: straggler before and after, slots filled anew)."""
    known = processes.fetch(state.model_state["placement"])
    tables, said = {}, {}
    for path, layer in self.layers.items():
      here, shape = tree.at(known, path), (self.owners, layer.stored or layer.num_experts)
      new_LER = []
      for repeat, (load_E, old_ER) in enumerate(zip(here["load_E"], here["slot_ER"], strict=True)):
        new_LER.append(placement.renewed(load_E, old_ER, *shape, self.cfg))
        pair = (old_ER, new_LER[-1])
        before, after = (placement.straggler(load_E, slot_ER, *shape) for slot_ER in pair)
        old_S, new_S = (placement.held(slot_ER, shape[1]) for slot_ER in pair)
        say = {"before": before, "after": after, "moved": int(np.sum(old_S != new_S))}
        said[self._name(path, repeat)] = say
      tables[path] = np.stack(new_LER)
    if any(one["moved"] for one in said.values()):
      state = self.program(state, self.put(tables))
    return state, dict(sorted(said.items()))

  def put(self, tables: dict) -> list:
    """Tables as the program takes them."""
    return [jax.device_put(tables[path].astype(np.int32), self.place) for path in self.layers]

  def _name(self, path, repeat: int) -> str:
    """layer_NNN."""
    run = next(run for run in runs.fold(self.model_cfg.layers) if run.name == path[0])
    return f"layer_{run.layer(repeat, int(path[1])):03d}"
