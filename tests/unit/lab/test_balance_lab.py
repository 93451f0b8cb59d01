"""The balance laboratory: what it replays is what training does, and what it says of it is so."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from moejax import cli
from moejax.balance import sign
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.lab import balance, logits
from moejax.routers import sigmoid_topk

SMALL = logits.drift(6, tokens=64, ids=8)


def test_a_replay_is_the_controller_step_by_step():
  cfg, rule = balance.router("sigmoid_topk", 2), sign.Config()
  arguments = (jnp.asarray(SMALL.logit_SNU), jnp.asarray(SMALL.valid_SN), jnp.array([0.02, 0.1]))
  found = balance.replay(*arguments, cfg, rule, 9)
  bias_U, score_SNU = np.zeros(8), 1 / (1 + np.exp(-np.float64(SMALL.logit_SNU)))
  for i, s in enumerate([0, 1, 2, 3, 4, 5, 5, 4, 3]):  # there and back again
    inputs = RouterInputs(state={"bias_U": jnp.asarray(bias_U, jnp.float32)})
    expert_NK = np.asarray(sigmoid_topk.select(SMALL.logit_SNU[s], inputs, cfg))
    count_U = np.bincount(expert_NK.ravel(), minlength=8)
    assert found["max_vio"][1, i] == pytest.approx(count_U.max() / count_U.mean() - 1, abs=1e-5)
    taken = np.take_along_axis(score_SNU[s], expert_NK, axis=1).sum(1)
    best = np.sort(score_SNU[s], axis=1)[:, -2:].sum(1)
    assert found["regret"][1, i] == pytest.approx((best - taken).mean(), abs=1e-5)
    bias_U += 0.1 * np.sign(count_U.mean() - count_U)
  assert float(found["regret"][0, 0]) == 0 and not np.allclose(
    found["max_vio"][0], found["max_vio"][1]
  )


def test_a_controller_settles_where_it_is_fast_enough_and_not_too_fast(tmp_path):
  text = balance.run("drift", tmp_path, rules=["sign"], speeds=[1e-6, 0.01, 3.0], steps=120)
  result = json.loads((tmp_path / "lab.json").read_text())
  (rule,) = result["rules"]
  assert rule["stable"] == [pytest.approx(0.01)] and rule["best"]["settles"] < 60
  slow, good, fast = rule["speeds"]
  assert good["max_vio"] < 0.5 < min(slow["max_vio"], fast["max_vio"])
  assert slow["regret"] < good["regret"] < fast["regret"]
  assert rule["steps_per_s"] > 0 and "steps/s" in text
  assert (tmp_path / "lab.png").read_bytes().startswith(b"\x89PNG")


def test_every_rule_with_a_speed_and_an_update_is_found():
  assert {"sign", "zero_mean"} <= set(balance.rules()) and "switch" not in balance.rules()


def test_logits_come_back_from_their_file(tmp_path):
  logits.write(SMALL, tmp_path / "some.npz")
  back = logits.open(str(tmp_path / "some.npz"))
  np.testing.assert_array_equal(back.logit_SNU, SMALL.logit_SNU)
  assert back.k == 2 and back.valid_SN.all() and back.source == "some.npz"


WRONG = {
  "source": (["lab", "no/such.npz"], "lab: 'no/such.npz' holds no logits"),
  "rule": (["lab", "drift", "--rules=sing"], "no controller 'sing'. Did you mean 'sign'?"),
  "speeds": (["lab", "drift", "--speeds=fast"], "speeds 'fast' are no grid; write first:last"),
  "bias": (["lab", "drift", "--router=topk"], "lab: topk chooses without a bias"),
  "steps": (["lab", "drift", "--bound=0"], "bound 0.0 and all of 13 speeds must be above 0"),
}


@pytest.mark.parametrize("words, sentence", WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_sentence(words, sentence, capsys):
  assert cli.main(words) == 2
  err = capsys.readouterr().err
  assert sentence in err and err.count("\n") == 1


def test_logits_of_another_shape_are_refused(tmp_path):
  np.savez(tmp_path / "flat.npz", logit_SNU=np.zeros((3, 4)))
  with pytest.raises(Wrong, match=r"logits of \(3, 4\)"):
    logits.read(tmp_path / "flat.npz")
