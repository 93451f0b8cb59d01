"""Causality, found by trying: does a later token change an earlier output of a tiny model?

The tokens from the middle of every sequence on are replaced, several times, and the predictions
before them compared: in the forward pass of training (with its random draws, the same each time),
in that of evaluation, and against a pass in which the later tokens are not there yet, as when text
is written token by token. The size of a leak is in bits: the largest change of log2 of any
probability. `python -m moejax audit causality` prints the table.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import config, plugin
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Failed, Wrong
from moejax.lab import drawn, plain
from moejax.report import index

B, T, CUT, VOCAB, TRIALS = 2, 12, 6, 24, 8
BITS = 1e-4  # a change below it is that of rounding
FAMILIES = ("routers", "edits", "blocks", "attention")
MODEL = {
  "vocab": VOCAB, "width": 16, "mlp": {"hidden": 16}, "allow_noncausal": True,
  "attention": {"heads": 2, "kv_heads": 1, "head_width": 8},
  "moe": {"num_experts": 8, "hidden": 16, "dispatch": {"name": "dense"}},
}  # fmt: skip


class Row(typing.NamedTuple):
  """What a component says, and the leaks in bits; a note where it could not be run."""

  component: str
  says: bool
  docstring: bool | None  # what its line `Causal:` says, None without one
  train: float = 0.0
  evaluation: float = 0.0
  decoding: float = 0.0
  note: str = ""

  @property
  def agrees(self) -> bool:
    """Whether docstring, function and measurement say the same."""
    measured = max(self.train, self.evaluation, self.decoding) <= BITS
    return self.docstring in (None, self.says) and (bool(self.note) or measured == self.says)


def audit(families=FAMILIES, names=None) -> list[Row]:
  """One row per component and setting that decides it."""
  known = [(f, name) for f in families for name in plugin.names(f)]
  if names is not None:
    for name in names:
      if name not in [n for _, n in known]:
        raise Wrong(
          f"audit: {'/'.join(families)} has no {name!r}. {plugin.hint(name, dict(known))}"
        )
    known = [(f, name) for f, name in known if name in names]
  return [examine(f, name, cfg) for f, name in known for cfg in settings(f, name)]


def settings(family: str, name: str) -> list[dict]:
  """The fields to set: every choice of a field by which a component may or may not be causal.

  >>> settings("routers", "topk")
  [{}]
  >>> settings("edits", "capacity")[:2]
  [{'order': 'position'}, {'order': 'choice_major'}]
  """
  module = plugin.load(family, name)
  found = [{}]
  if hasattr(module, "causal"):
    for field in dataclasses.fields(module.Config):
      values = (False, True) if field.type is bool else typing.get_args(field.type)
      options = [{field.name: value} for value in values]
      if len({says(family, name, option) for option in options}) > 1:
        found = options
  return found


def says(family: str, name: str, setting: dict) -> bool | None:
  """What a component's function says of a setting; None where the setting alone is no config."""
  module = plugin.load(family, name)
  try:
    return plugin.causal(module.Config(**setting))
  except (Wrong, TypeError):
    return None


def documented(family: str, name: str, setting: dict) -> bool | None:
  """What the docstring's line `Causal:` says of a setting.

  >>> documented("routers", "topk", {}), documented("edits", "capacity", {"order": "gate"})
  (True, False)
  """
  claims = index.component(family, name).says("Causal").split(". ")
  named = [c for c in claims if any(str(v) in c.partition(":")[0] for v in setting.values())]
  for claim in [*(c.partition(":")[2].strip() for c in named), *claims]:
    if claim.startswith(("yes", "no")):
      return claim.startswith("yes")
  return None


def examine(family: str, name: str, setting: dict) -> Row:
  """One component in a model of two layers."""
  doc = documented(family, name, setting)
  said = says(family, name, setting)
  said = doc is not False if said is None else said
  title = f"{family}/{name}" + "".join(f" {value}" for value in setting.values())
  for dispatch in ("dense", "einsum"):  # the second one mixes tokens, too
    try:
      return Row(title, said, doc, *leaks(section(family, name, setting, dispatch)))
    except Wrong as reason:
      note = str(reason)
  return Row(title, said, doc, note=note)


def section(family: str, name: str, setting: dict, dispatch: str = "dense") -> dict:
  """The section `model` of a tiny model with a component in it."""
  layer, moe = {"ffn": "moe"}, {**MODEL["moe"], "dispatch": {"name": dispatch}}
  component, attention = {"name": name, **setting}, MODEL["attention"]
  fields = {f.name for f in dataclasses.fields(plugin.load(family, name).Config)}
  if family == "routers":
    moe["router"] = component
  elif family == "edits":
    tight = {"factor": 0.5} if "factor" in fields else {}
    moe["edits"] = [{**tight, **component}]
  elif family == "blocks":
    layer = component
  else:
    attention = {**{k: v for k, v in attention.items() if k in fields}, **component}
  return {**MODEL, "moe": moe, "attention": attention, "layers": [layer] * 2}


def leaks(section: dict) -> tuple[float, float, float]:
  """(in training, in evaluation, in decoding) of a model whose section is given, in bits."""
  cfg = config.section("model", section, "model")
  model = plugin.module(cfg).Model(cfg)
  draw = np.random.default_rng(0)
  token_BT = draw.integers(0, VOCAB, (B, T))
  kind_BT = draw.integers(0, 2, (B, T))
  given = {"valid_N": jnp.ones(B * T, bool), "cond_NC": _conditions(draw)}
  ctx = RouterInputs(modality_N=jnp.asarray(kind_BT.ravel())).replace(**given)
  start = lambda: model.init(jax.random.key(0), jnp.asarray(token_BT), ctx)
  variables = drawn.variables(start, draw)
  later_T = np.arange(T) >= CUT

  def run(token_BT, kind_BT, key=None, valid_T=None):
    valid_T = np.ones(T, bool) if valid_T is None else valid_T
    here = {**given, "valid_N": jnp.asarray(np.tile(valid_T, B)), "key": key}
    bits = _bits(model, variables, jnp.asarray(token_BT), jnp.asarray(kind_BT.ravel()), here)
    return np.asarray(bits)[:, :CUT]

  keys = {"train": jax.random.key(1), "evaluation": None}
  found = dict.fromkeys(keys, 0.0)
  for name, key in keys.items():
    want = run(token_BT, kind_BT, key)
    for trial in range(TRIALS):  # half of them crowd on one token
      new_BT = draw.integers(0, VOCAB, (B, T) if trial % 2 else (B, 1))
      kinds_BT = draw.integers(0, 2, (B, T))
      got = run(np.where(later_T, new_BT, token_BT), np.where(later_T, kinds_BT, kind_BT), key)
      found[name] = max(found[name], float(np.abs(got - want).max()))
  alone = run(token_BT, kind_BT, valid_T=~later_T)
  return found["train"], found["evaluation"], float(np.abs(alone - want).max())


def _conditions(draw):
  """One condition per sequence."""
  return jnp.asarray(np.repeat(draw.normal(size=(B, 2)), T, axis=0), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _bits(model, variables, token_BT, kind_N, given):
  """log2 of every probability."""
  segment_N = given["valid_N"].astype(jnp.int32)
  ctx = RouterInputs(modality_N=kind_N, segment_N=segment_N).replace(**given)
  logit_BTV, _ = model.apply(variables, token_BT, ctx)
  return jax.nn.log_softmax(logit_BTV.astype(jnp.float32)) / jnp.log(2.0)


def table(rows: list[Row]) -> str:
  """The rows as text for a terminal."""
  size = lambda bits: "-" if bits <= BITS else f"{bits:.3g}"
  yes = {True: "yes", False: "no", None: "-"}
  head = ["component", "causal", "docstring", "train", "evaluation", "decoding"]
  cells, notes = [], [""]
  for r in rows:
    leak = ["?"] * 3 if r.note else [size(x) for x in (r.train, r.evaluation, r.decoding)]
    cells.append([r.component, yes[r.says], yes[r.docstring], *leak])
    notes.append(r.note or ("" if r.agrees else "DISAGREES"))
  lines = plain.table(head, cells).splitlines()
  lines = [f"{line}   {note}".rstrip() for line, note in zip(lines, notes, strict=True)]
  return "\n".join(["Leaks from later tokens, in bits; - is none.", "", *lines])


def report(routers: str | None = None) -> str:
  """The text of `python -m moejax audit causality`; fails where a word and what is found differ."""
  rows = audit() if routers is None else audit(("routers",), routers.split(","))
  text = table(rows)
  wrong = [row.component for row in rows if not row.agrees]
  if wrong:
    print(text)
    raise Failed(f"audit: {', '.join(wrong)}: what is said and what is found disagree.")
  return text
