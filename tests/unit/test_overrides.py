"""Every component's fields can be set from the command line, also where no config mentions them."""

import dataclasses
import typing

import fields
import jax
import jax.numpy as jnp
import pytest

from moejax.core import axes, config, flags, plugin

BASE = (
  "--config=configs/base/decoder.py",
  "--config.model.allow_noncausal=True",
  "--config.model.moe.num_experts=8",
)
PLACES = {  # folder -> where its component stands in a config
  "models": "model",
  "attention": "model.attention",
  "blocks": "model.layers[1]",
  "layers": "model.{name}",
  "layers/shared": "model.moe.shared",
  "routers": "model.moe.router",
  "dispatch": "model.moe.dispatch",
  "balance": "model.moe.balance.{name}",
  "edits": "model.moe.edits",
  "data": "data",
  "train": "train",
  "train/stages": "stages",
  "train/placement": "train.placement",
  "schedules": "train.schedule",
  "optim": "optim",
  "optim/groups": "optim.rules",
  "core": "precision",
  "grow": "stages",
}
NAMED_FIRST = ("routers", "dispatch", "schedules", "blocks")  # where a section has another name
HOSTS = {  # layers that only some blocks have: (block, its section)
  "ssm": ("hydra", "ssm"), "workspace": ("hydra", "workspace"), "pkm": ("memory", "memory"),
  "peer": ("memory", "memory"), "ultramem": ("memory", "memory"), "table": ("memory", "memory"),
}  # fmt: skip
LISTS = {  # places that hold a list of sections
  "model.moe.edits": "[{section}]",
  "optim.rules": "[{section}]",
  "stages": "[{{'steps': 3}}, {{'steps': 3, 'transform': {section}}}]",
}
OPTIONAL = {  # a value for fields whose default says nothing of their kind
  "cache": "somewhere", "match": "E", "trainable": "E", "moe": {"num_experts": 2, "hidden": 4},
}  # fmt: skip


def components():
  """(folder, name) of every file with a Config, but the run itself."""
  for folder in sorted({folder for folder, _ in config.FAMILY.values()}):
    for name in plugin.names(folder):
      if hasattr(plugin.load(folder, name), "Config") and (folder, name) != ("train", "loop"):
        yield folder, name


def another(field, kind):
  """A value of a field's kind that is not its default, or None where none is known."""
  if field.name in OPTIONAL:
    return OPTIONAL[field.name]
  if typing.get_origin(kind) is typing.Literal:
    return next(v for v in typing.get_args(kind) if v != field.default)
  changed = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.125}
  return changed[type(field.default)](field.default) if type(field.default) in changed else None


def words(folder, name, values: dict) -> list[str]:
  """The overrides that set fields of a component."""
  place = PLACES.get(f"{folder}/{name}", PLACES[folder]).format(name=name)
  if folder == "layers" and name in HOSTS:
    block, key = HOSTS[name]
    section = {"name": name, **values}
    if name == "table":  # the row that a lookup starts from is known to one of its readers alone
      section = {"name": "ultramem" if "pre" in values else "pkm", "table": values}
    return [f"model.layers[1].name={block}", f"model.layers[1].{key}={section!r}"]
  if (folder, name) == ("train", "stages"):
    return [f"stages=[{dict(values, steps=3)!r}]"]
  if place in LISTS:
    return [f"{place}={LISTS[place].format(section={'name': name, **values})}"]
  named = [f"{place}.name={name}"] if folder in NAMED_FIRST else []
  return named + [f"{place}.{field}={value!r}" for field, value in values.items()]


def resolved(*overrides):
  return config.resolve(flags.parse([*BASE, *(f"--config.{o}" for o in overrides)]))


PLAIN = config.resolve(flags.parse(BASE[:1]))


def sections(dumped):
  """Every section in a dumped config."""
  if isinstance(dumped, dict):
    yield dumped
  for value in dumped.values() if isinstance(dumped, dict) else dumped:
    if isinstance(value, dict | list):
      yield from sections(value)


def has(cfg, name, field, value):
  """Whether some section of that name has the field at the value."""
  kind = list if isinstance(value, tuple) else type(value)
  found = [s for s in sections(config.dump(cfg)) if s.get("name") == name and field in s]
  return any(s[field] == kind(value) for s in found)


@pytest.mark.parametrize("folder, name", list(components()))
def test_a_field_of_every_component_can_be_set(folder, name):
  Config = plugin.load(folder, name).Config
  fields = dataclasses.fields(Config)
  kinds = typing.get_type_hints(Config)
  values = {f.name: another(f, kinds[f.name]) for f in fields}
  values = {field: value for field, value in values.items() if value is not None}
  required = {f.name: values[f.name] for f in fields if f.name in OPTIONAL and f.name in values}
  values = {field: value for field, value in values.items() if field not in config.FAMILY}
  done = []
  for field, value in values.items():
    try:
      cfg = resolved(*words(folder, name, {**required, field: value}))
    except plugin.Wrong:
      continue  # this value does not go with the others; some value of the component must
    assert has(cfg, name, field, value), (field, value)
    assert not has(PLAIN, name, field, value) or field in required
    done.append(field)
  assert len(done) >= 0.6 * len(values), f"of {list(values)} only {done} could be set"


@pytest.mark.parametrize("name", plugin.names("routers"))
def test_the_router_is_switched_by_its_name_alone(name):
  cfg = resolved(f"model.moe.router.name={name}")
  routers = {plugin.stem(layer.ffn.router) for layer in cfg.model.layers[1::2]}
  assert routers == {name}
  try:
    shapes = made(cfg.model)
  except plugin.Wrong as reason:  # mixtures of tokens need another dispatch, which it names
    assert "use the dispatch 'einsum'" in str(reason)
    shapes = made(resolved(f"model.moe.router.name={name}", "model.moe.dispatch.name=einsum").model)
  leaves = jax.tree.leaves_with_path(shapes["params"])
  paths = [tuple(key.key for key in path) for path, _ in leaves]
  of_experts = ["E" in axes.letters(path[-1]) for path in paths if axes.role(path) == "router"]
  has_none = "no parameters" in fields.need(plugin.load("routers", name), "State")
  assert not of_experts if has_none else any(of_experts)


def made(cfg):
  """The shapes of a model's variables."""
  init = plugin.module(cfg).Model(cfg).init
  return jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 8), int))


def test_a_config_file_is_read_as_it_stands(tmp_path, monkeypatch):
  monkeypatch.setattr("sys.dont_write_bytecode", False)
  file = tmp_path / "edited.py"
  for value in ("0.1", "0.2"):  # two texts of one size, within a second
    file.write_text(f"def get_config():\n  return {{'train': {{'lr_peak': {value}}}}}\n")
    assert flags.find(str(file))[0].get_config()["train"]["lr_peak"] == float(value)
