"""Every config file resolves to a model; the published ones to as many parameters as published."""

import pathlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from moejax.core import axes, config, flags, plugin, runs
from moejax.layers import moe

FILES = [
  module.name.replace(".", "/") + ".py"
  for module in pkgutil.walk_packages(configs.__path__, "configs.")
  if not module.ispkg
]
PUBLISHED = {  # billions, as printed: total, active
  "mixtral_8x7b": ("46.7", "12.9"),
  "qwen3_30b_a3b": ("30.5", "3"),  # its "3.3B active" is 3.353 cut off, not rounded
  "qwen3_235b_a22b": ("235", "22"),
  "olmoe_1b_7b": ("6.9", "1.3"),
  "deepseek_moe_16b": ("16.4", "2.8"),
  "qwen15_moe_a27b": ("14.3", "2.7"),
  "qwen2_57b_a14b": ("57.4", "14.2"),
  "deepseek_v3": ("671", "37"),
  "kimi_k2": ("1026", "32"),  # printed as 1T; what follows from the printed sizes
}
LATENT = {  # heads, ranks of queries and keys, widths without and with rotation, of values
  "deepseek_v3": (128, 1536, 512, 128, 64, 128),
  "kimi_k2": (64, 1536, 512, 128, 64, 128),
}


def shapes_of(section):
  cfg = config.section("model", {"vocab": 64, **section})
  model = plugin.module(cfg).Model(cfg)
  init = lambda key: model.init(key, jnp.zeros((1, 8), int))
  return cfg, jax.eval_shape(init, jax.random.key(0))["params"]


def arms(file):
  """(file, arm) pairs as the command line writes them."""
  module, _ = flags.find(file)
  return [f"{file}:{arm}" for arm in getattr(module, "ARMS", ())] or [file]


@pytest.mark.parametrize("source", [arm for file in FILES for arm in arms(file)])
def test_every_config_is_a_model(source):
  cfg = flags.parse([f"--config={source}"])
  _, params = shapes_of(cfg["model"])
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    stacked = path[0].key.startswith("layers_")
    assert leaf.ndim == len(axes.letters(path[-1].key)) + stacked, path
  config.resolve(cfg)


@pytest.mark.parametrize("file", [file for file in FILES if "/studies/" in file])
def test_the_published_names_of_a_study_are_arms_of_it(file):
  module, _ = flags.find(file)
  for arm, (what, paper) in getattr(module, "PAPERS", {}).items():
    assert arm in module.ARMS and what.endswith("."), f"{file}: PAPERS[{arm!r}]"
    assert re.search(r"\d{4}", paper), f"{file}: PAPERS[{arm!r}] names no paper of any year"


def test_every_file_is_looked_at():
  root = pathlib.Path(configs.__path__[0])
  on_disk = {f"configs/{p.relative_to(root)}" for p in root.rglob("*.py") if p.stem != "__init__"}
  assert set(FILES) == on_disk
  models = {p.stem for p in (root / "models").glob("*.py")} - {"__init__"}
  assert models == set(PUBLISHED), "a published architecture needs its published totals here"


def latent(D, H, Rq, Rk, plain, turned, A):
  """Parameters of a layer's latent attention, with the norms of its two ranks."""
  queries = D * Rq + Rq + Rq * H * (plain + turned)
  return queries + D * (Rk + turned) + Rk + Rk * H * (plain + A) + H * A * D


@pytest.mark.parametrize("stem", PUBLISHED)
def test_a_published_architecture_has_the_published_parameters(stem):
  cfg, params = shapes_of(flags.load(f"configs/models/{stem}.py")["model"])
  total, idle = 0, 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    size = int(np.prod(leaf.shape, dtype=np.int64))
    total += size
    if axes.letters(path[-1].key).startswith("E"):
      layer = runs_layer(cfg, path)
      idle += size * (layer.num_experts - layer.router.k) // layer.num_experts
    if stem in LATENT and "attention" in [entry.key for entry in path]:
      total -= size  # what stands in is not compared
  if stem in LATENT:
    total += len(cfg.layers) * latent(cfg.width, *LATENT[stem])
    idle += cfg.vocab * cfg.width  # these papers count as active the head, and no table of vectors
  for exact, printed in zip((total, total - idle), PUBLISHED[stem], strict=True):
    digits = len(printed.partition(".")[2])
    assert f"{exact / 1e9:.{digits}f}" == printed, f"{stem}: {exact:,}"


def runs_layer(cfg, path):
  """The MoE section that a leaf belongs to."""
  keys = [str(entry.key) for entry in path]
  found = [
    section for at, section in runs.find(cfg.layers, moe.Config) if list(at) == keys[: len(at)]
  ]
  assert len(found) == 1, keys
  return found[0]
