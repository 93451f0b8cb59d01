"""The rules of the house that a machine can check; each failure names the file to edit."""

import pathlib
import re

import fields
import oracle
import pytest

from moejax.core import plugin

ROOT = pathlib.Path(__file__).parents[2]
FILES = [p for d in ("moejax", "pallas_kernels") for p in sorted((ROOT / d).rglob("[a-z]*.py"))]
NEEDS = {  # family -> the fields of its docstrings; a slash: one of them
  "routers": ("Paper", "Plan", "State", "Tokens", "Causal", "Study"),
  "edits": ("Paper", "Plan", "State", "Causal", "Study"),
  "balance": ("Paper", "Sums/State", "Study"),
  "dispatch": ("Plan", "Cost"),
}
COMPONENTS = [(family, name) for family in NEEDS for name in plugin.names(family)]
NAMES = [f"{family}/{name}" for family, name in COMPONENTS]


@pytest.mark.parametrize("family, name", COMPONENTS, ids=NAMES)
def test_a_component_says_what_its_family_says(family, name):
  module = plugin.load(family, name)
  for words in NEEDS[family]:
    have = [word for word in words.split("/") if word in fields.of(module)]
    fields.need(module, have[0] if have else words)
  if "Paper" in NEEDS[family]:
    assert re.search(r"\d{4}", fields.need(module, "Paper")), f"{family}/{name}: a paper of no year"


@pytest.mark.parametrize("family, name", COMPONENTS, ids=NAMES)
def test_a_study_is_there_in_both_places(family, name):
  if "Study" in NEEDS[family]:
    study = fields.need(plugin.load(family, name), "Study")
    for path in (study, study.replace("configs/", "experiments/")):
      assert (ROOT / path).exists(), f"moejax/{family}/{name}.py names {study}: write {path}"


@pytest.mark.parametrize("family", ["routers", "edits", "balance"])
def test_every_component_has_an_oracle_and_every_oracle_a_component(family):
  for name in plugin.names(family):
    assert oracle.load(family, name).CASES, f"tests/oracle/{family}/{name}.py: CASES is empty"
  loops = {p.stem for p in (oracle.ROOT / family).glob("[a-z]*.py")}
  assert loops <= set(plugin.names(family)), f"tests/oracle/{family} has loops of nothing: {loops}"


def test_a_missing_field_and_a_missing_oracle_name_the_file_to_edit():
  module = plugin.load("dispatch", "dense")
  with pytest.raises(AssertionError, match="moejax/dispatch/dense.py.*no line 'Study"):
    fields.need(module, "Study")
  with pytest.raises(AssertionError, match="write tests/oracle/routers/nobody.py"):
    oracle.load("routers", "nobody")


def test_lifted_transforms_live_in_the_stack_alone():
  lifted = re.compile(r"nn\.(scan|remat|vmap|jit|checkpoint|while_loop|cond)\b")
  assert [p.name for p in FILES if lifted.search(p.read_text())] == ["stack.py"]


def test_only_public_names_of_jax_are_used():
  hidden = re.compile(r"jax\._src|from jax import _src")
  assert not [p.name for p in FILES if hidden.search(p.read_text())]
