"""The cells of the audit: what is laid over a config, as data.

A cell is a dict of changes to a run's config, so that a new mesh, dispatch or policy is one more
line here. What a mesh or a component refuses is a line of the table with its sentence, no miss.
"""

from moejax.core import config, plugin

MODEL = {  # every dimension is divided by every mesh of the grid; with padding, drops and balance
  "vocab": 32, "width": 16, "mlp": {"hidden": 16},
  "attention": {"heads": 4, "kv_heads": 2, "head_width": 4},
  "moe": {
    "num_experts": 8, "hidden": 16, "router": {"name": "sigmoid_topk", "k": 2},
    "edits": [{"name": "capacity", "factor": 1.25}], "balance": {"switch": {}, "sign": {}},
  },
  "layers": [{"ffn": "mlp"}, *[{"ffn": "moe"}] * 4],
}  # fmt: skip
RUN = {
  "model": MODEL, "data": {"seq_len": 16, "tokenizer": "bytes"},
  "train": {"batch_size": 16}, "precision": {"compute": "float32"},
}  # fmt: skip

OWNERS = ("expert:8", "data:2,expert:4")  # every dispatch runs on these
MESHES = (  # one axis, then pairs, then three
  "data:8", "fsdp:8", "tensor:2", "context:2", "stage:2", "stage:4",
  "fsdp:2,expert:4", "tensor:2,expert:4", "context:2,expert:4", "stage:2,expert:4",
  "data:4,tensor:2", "fsdp:4,tensor:2", "data:4,context:2", "fsdp:4,context:2",
  "data:4,stage:2", "fsdp:4,stage:2", "context:2,tensor:2", "stage:2,tensor:2", "stage:2,context:2",
  "fsdp:2,expert:2,tensor:2", "data:2,expert:2,context:2", "stage:2,expert:2,tensor:2",
  "stage:2,fsdp:2,expert:2", "data:2,stage:4",
)  # fmt: skip
CIRCULAR = {"rounds": 2, "microbatches": 4}  # every mesh with two stages runs so, too
QUEUE = {"microbatches": 8}  # of two stages and four: GPipe with more micro-batches than stages
WITHOUT = {"switch": None, "sign": None}  # for routers without a bias, or whose tokens mix
CHOICE = {"model": {"allow_noncausal": True, "moe": {"edits": [], "balance": WITHOUT}}}
OTHERS = (  # what meshes meet: rematerialisation, accumulation, other kinds of plans, no drops
  {"mesh": "data:2,expert:4", "dispatch": "ragged", "remat": "full"},
  {"mesh": "fsdp:2,expert:2,tensor:2", "dispatch": "all_to_all", "remat": "full"},
  {"mesh": "data:2,expert:2", "dispatch": "ragged", "accumulate": 2},
  {"mesh": "data:2,expert:4", "dispatch": "ragged", "router": "expert_choice"},
  {"mesh": "data:2,expert:4", "dispatch": "einsum", "router": "soft"},
  {"mesh": "data:2,expert:4", "dispatch": "all_gather", "router": "top_p"},
  {"mesh": "stage:2", "dispatch": "sort", "pipeline": QUEUE},
  {"mesh": "stage:4,data:2", "dispatch": "sort", "pipeline": QUEUE},
  {"mesh": "stage:2,expert:2", "dispatch": "all_to_all", "remat": "full"},
  {"mesh": "stage:2,expert:2", "dispatch": "ragged", "remat": "full", "pipeline": CIRCULAR},
  {"mesh": "stage:2,data:2", "dispatch": "sort", "accumulate": 2},
  {"mesh": "stage:2,data:2", "dispatch": "sort", "accumulate": 2, "pipeline": CIRCULAR},
  {"mesh": "stage:2,expert:2", "dispatch": "ragged", "router": "expert_choice"},
  {"mesh": "stage:2,expert:2", "dispatch": "einsum", "router": "soft", "pipeline": CIRCULAR},
  {"mesh": "stage:2,expert:2", "dispatch": "ragged", "router": "recurrent"},
  {"mesh": "stage:2,data:2", "dispatch": "sort", "router": "depth_averaged", "pipeline": CIRCULAR},
  {"mesh": "stage:2,data:2", "dispatch": "sort", "router": "stable"},
  # fewer rows than devices: context cuts T
  {"mesh": "context:4", "dispatch": "sort", "rows": 1},
  {"mesh": "data:2,context:4", "dispatch": "sort", "rows": 2},
  {"mesh": "fsdp:2,context:2,tensor:2", "dispatch": "sort", "rows": 4, "accumulate": 2},
  {"mesh": "expert:2,context:4", "dispatch": "all_gather", "rows": 2},
  # Parallel Folding: experts over axes that cut tokens or heads in attention
  {"mesh": "expert:2,tensor:4", "dispatch": "ragged", "experts": "E:expert+tensor,F:"},
  {"mesh": "data:2,context:2,tensor:2", "dispatch": "ragged", "experts": "E:data+tensor,F:"},
  {"mesh": "data:2,expert:4", "dispatch": "all_to_all", "experts": "E:data+expert"},
  {"mesh": "data:2,context:2,tensor:2", "dispatch": "ragged", "experts": "E:data,F:context+tensor"},
  {"mesh": "context:8", "dispatch": "ragged", "experts": "E:context", "rows": 1},
)


def grid(own: bool = True) -> list[dict]:
  """The cells that an audit without a mesh runs on eight devices; `own`: of the tiny model.

  >>> grid()[0]
  {'mesh': 'expert:8', 'dispatch': 'adaptive'}
  """
  owned = [{"mesh": mesh, "dispatch": name} for mesh in OWNERS for name in plugin.names("dispatch")]
  by_mesh = lambda mesh: {"mesh": mesh, "dispatch": "ragged" if "expert" in mesh else "sort"}
  circular = [{**by_mesh(mesh), "pipeline": CIRCULAR} for mesh in MESHES if "stage:2" in mesh]
  others = [cell for cell in OTHERS if own or not {"router", "rows"} & set(cell)]
  return [*owned, *map(by_mesh, MESHES), *circular, *others]


def around(section: dict) -> list[dict]:
  """The cells of a run with a mesh of its own: itself, then one thing changed at a time."""
  at = {"mesh": section["mesh"]}
  other = "none" if section["model"]["remat"] != "none" else "full"
  return [at, {**at, "remat": other}, *({**at, "dispatch": d} for d in plugin.names("dispatch"))]


def title(cell: dict) -> str:
  """How the table calls a cell.

  >>> title({"mesh": "expert:8", "dispatch": "ring"}), title({"mesh": ""})
  ('expert:8, ring', 'all devices')
  """
  words = [cell["mesh"].replace(" ", "") or "all devices"]
  words += [cell[key] for key in ("dispatch", "router") if key in cell]
  words += [f"{key} {cell[key]}" for key in ("remat", "accumulate", "rows") if key in cell]
  words += [f"{key} {value}" for key, value in sorted(cell.get("pipeline", {}).items())]
  words += [f"experts {cell['experts']}"] if "experts" in cell else []
  return ", ".join(words)


def laid(section: dict, cell: dict) -> dict:
  """A written-out config (core/config.dump) or the section of one, with a cell laid over it."""
  section = config.merge(section, {"mesh": cell.get("mesh", "")})
  if "experts" in cell:
    section = config.merge(section, {"roles": {"experts": cell["experts"]}})
  if "rows" in cell:
    section = config.merge(section, {"train": {"batch_size": cell["rows"]}})
  if "accumulate" in cell:
    section = config.merge(section, {"train": {"accumulate": cell["accumulate"]}})
  for key in ("remat", "pipeline"):
    if key in cell:
      section = config.merge(section, {"model": {key: cell[key]}})
  if "router" in cell:
    section = config.merge(section, CHOICE)
  for key in ("dispatch", "router"):
    if key in cell:
      section = {**section, "model": everywhere(section["model"], key, {"name": cell[key]})}
  return section


def everywhere(model: dict, key: str, value: dict) -> dict:
  """A section `model` in which every MoE layer has `value` as its section `key`.

  >>> everywhere({"moe": {"dispatch": {"name": "sort"}}}, "dispatch", {"name": "ring"})
  {'moe': {'dispatch': {'name': 'ring'}}}
  """
  out = dict(model)
  if "layers" not in model or "moe" in model:  # as a config file has it: layers start from `moe`
    out["moe"] = {**model.get("moe", {}), key: value}
  if isinstance(model.get("layers"), list):
    out["layers"] = [_in_layer(layer, key, value) for layer in model["layers"]]
  return out


def _in_layer(layer, key, value):
  """The parts of a layer that have a router of their own, wherever they are."""
  if not isinstance(layer, dict):
    return layer
  own = {key: value} if "router" in layer or "dispatch" in layer else {}
  return {**{name: _in_layer(part, key, value) for name, part in layer.items()}, **own}
