"""The committed plans against the closed forms of their layouts; nothing is compiled here."""

import json
import math
import pathlib

import pytest

from moejax.core import axes, config, flags, runs
from moejax.lab import plan, plan_page
from moejax.layers import moe
from moejax.perf import flops
from moejax.train import mesh as meshes

DOCS = pathlib.Path(__file__).parents[3] / "docs"
PLANS = {path.stem: json.loads(path.read_text()) for path in sorted(DOCS.glob("plans/*.json"))}
MODELS = ("mixtral_8x7b", "qwen3_30b_a3b", "qwen3_235b_a22b", "deepseek_v3", "kimi_k2")


def parts(found):
  """(model config, sizes of the mesh, tokens of a sequence)."""
  cfg = config.resolve(flags.parse(found["words"]))
  return cfg, meshes.parse(found["mesh"]), plan.SEQ


def moved(found, kind, axes):
  rows = [row for row in found["collectives"] if (row["kind"], row["axes"]) == (kind, axes)]
  return sum(row["bytes"] for row in rows)


def test_every_model_has_a_plan_for_a_tpu_and_for_a_cluster():
  chips = {
    stem: {p["topology"][:4] for s, p in PLANS.items() if s.startswith(stem)} for stem in MODELS
  }
  assert all("h200" in found and len(found) == 2 for found in chips.values()), chips


@pytest.mark.parametrize("stem", PLANS)
def test_it_fits_and_names_its_model(stem):
  found = PLANS[stem]
  assert plan.fits(found)
  assert found["words"][0] == f"--config=configs/models/{stem.partition('.')[0]}.py"
  assert all(row["known"] for row in found["collectives"])


@pytest.mark.parametrize("stem", PLANS)
def test_rows_travel_as_often_as_the_formula_says(stem):
  """2 * E * C * D * b forward, the same again under remat=full, and the same backward."""
  cfg, sizes, T = parts(PLANS[stem])
  layers = [part for _, part in runs.find(cfg.model.layers, moe.Config)]
  count = sum(isinstance(layer.ffn, moe.Config) for layer in cfg.model.layers)
  E, K, factor = layers[0].num_experts, layers[0].router.k, layers[0].edits[0].factor
  slots = math.ceil(factor * T * K / E)
  wanted = 6 * count * E * slots * cfg.model.width * 2
  assert moved(PLANS[stem], "all-to-all", "expert") == wanted
  assert PLANS[stem]["tokens"] == sizes["expert"] * sizes.get("fsdp", 1) * T


SUMMED_WHOLE = ("deepseek_v3.v5p", "kimi_k2.v5p", "qwen3_30b_a3b.v6e")


@pytest.mark.parametrize("stem", [s for s, found in PLANS.items() if "fsdp" in found["mesh"]])
def test_what_fsdp_cuts_is_gathered_and_its_gradient_scattered(stem):
  """A gradient once. A weight of a layer forward and again backward, that of experts as well.

  The TPU compiler leaves some gradients summed whole on every device, and cuts them then; beside
  them it sums a few activations.
  """
  cfg, sizes, _ = parts(PLANS[stem])
  gradients = weights = 0
  for names, shape in flops.leaves(cfg.model, 128):
    letters, role = axes.letters(names[-1]), axes.role(names)
    if "D" in letters and len(letters) > 1:
      held = math.prod(shape) // (sizes["expert"] if role == "experts" else 1)
      gradients += held * (4 if role == "router" else 2)
      weights += 0 if role == "router" or "V" in letters else 2 * held
  scattered, whole = (moved(PLANS[stem], k, "fsdp") for k in ("reduce-scatter", "all-reduce"))
  assert scattered + whole == pytest.approx(gradients, rel=0.01)
  assert whole > 2**30 if stem in SUMMED_WHOLE else whole < 2**20
  gathered = moved(PLANS[stem], "all-gather", "fsdp")
  assert 2 * weights <= gathered <= 2 * weights + 3 * (gradients - weights)


def test_the_page_shows_them_all():
  page = (DOCS / "plans.md").read_text()
  assert page == plan_page.markdown([str(DOCS / "plans" / f"{stem}.json") for stem in PLANS]) + "\n"
