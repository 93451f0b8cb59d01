"""Who says to be causal is: docstring, function and measurement; the others are refused on text."""

import pytest

from moejax.core import config, plugin
from moejax.core.plugin import Wrong
from moejax.lab import causality

CASES = [
  (family, name, i)
  for family in causality.FAMILIES
  for name in plugin.names(family)
  for i in range(len(causality.settings(family, name)))
]
FEW = [("routers", "expert_choice", 0), ("edits", "capacity", 0)]


@pytest.mark.parametrize("family, name, i", CASES)
def test_the_docstring_says_what_the_function_says(family, name, i):
  setting = causality.settings(family, name)[i]
  said = causality.documented(family, name, setting)
  if family in ("routers", "edits"):
    assert said is not None, f"moejax/{family}/{name}.py: its line Causal does not say yes or no"
    answer = "needs" if said is False else "needs no"
    assert causality.says(family, name, setting) in (said, None), (
      f"moejax/{family}/{name}.py: Causal: {'yes' if said else 'no'}, so it {answer} function"
      " `causal(cfg)` that returns False"
    )


@pytest.mark.parametrize(
  "family, name, i",
  [case if case in FEW else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_what_is_said_is_what_is_found(family, name, i):
  row = causality.examine(family, name, causality.settings(family, name)[i])
  assert row.agrees, causality.table([row])
  if family in ("routers", "edits"):
    assert not row.note, row.note


def test_a_false_word_is_found(monkeypatch):
  router = plugin.load("routers", "expert_choice")
  monkeypatch.setattr(router, "causal", lambda cfg: True)
  row = causality.examine("routers", "expert_choice", {})
  assert row.says and row.evaluation > 0.1 and not row.agrees
  assert "DISAGREES" in causality.table([row])


NONCAUSAL = [
  {"router": {"name": "expert_choice"}},
  {"edits": [{"name": "capacity", "order": "gate"}]},
]


@pytest.mark.parametrize("moe", NONCAUSAL, ids=["router", "edit"])
def test_a_language_model_that_sees_later_tokens_is_refused_unless_told_otherwise(moe):
  section = {"model": {"vocab": 8, "moe": moe, "layers": [{"ffn": "moe"}]}}
  with pytest.raises(
    Wrong, match="(routers/expert_choice|edits/capacity) a later token.*allow_non"
  ):
    config.resolve(section)
  section["model"]["allow_noncausal"] = True
  assert config.resolve(section).model.layers
