"""The router apart, taught by a dense model: scores, loss, and a model of masks in the end."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, tree
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.grow import extract
from moejax.lab import pregate as lab
from moejax.models import decoder
from moejax.routers import pregate

VOCAB, D, F, E, B, T = 13, 8, 12, 3, 2, 6
CFG = pregate.Config(rank=8, heads=2, gates="one")
TOKEN_BT = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (B, T)), jnp.int32)
VALID_N = jnp.arange(B * T) != 7
CTX = RouterInputs(label_N=TOKEN_BT.ravel() % E, labels=E, valid_N=VALID_N)
LAYERS = ("layer_000", "layer_001")


def section(**moe):
  """Two layers of experts, or of dense FFNs."""
  return {
    "vocab": VOCAB, "width": D, "mlp": {"hidden": F},
    "moe": {"num_experts": E, **moe} if moe else {},
    "layers": [{"ffn": "moe" if moe else "mlp"}] * 2,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
  }  # fmt: skip


@pytest.fixture(scope="module")
def dense():
  """(model, variables, masks by layer, activations)."""
  model = decoder.Model(config.section("model", section()))
  variables = drawn.variables(model, TOKEN_BT)
  size = extract.statistics(model, variables, [(TOKEN_BT, CTX)])
  return model, variables, {name: extract.masks(size[name], 0.5) for name in LAYERS}, size


@pytest.fixture(scope="module")
def taught(dense):
  """(params of the router, history)."""
  return lab.fit(*dense[:3], [(TOKEN_BT, CTX)], CFG, steps=60, lr=1e-2)


def test_the_scores_of_a_token_are_those_of_its_own_units(dense):
  """One token at a time: all others are padding, which moves no unit."""
  model, variables, mask_of, _ = dense
  score_LNE = lab.teacher(model, variables, mask_of)(TOKEN_BT, CTX)
  assert score_LNE.shape == (2, B * T, E)
  whole = jax.jit(lambda ctx: model.apply(variables, TOKEN_BT, ctx)[1])
  for n in (0, 5, 9):
    alone = CTX.replace(label_N=jnp.where(jnp.arange(B * T) == n, 0, 1), taps=(extract.TAP,))
    by_layer = tree.unstack(whole(alone), model.cfg)
    for i, name in enumerate(LAYERS):
      size_F = by_layer[name]["ffn"][f"taps/{extract.TAP}"][0]
      assert_close(score_LNE[i, n], extract.scores(size_F[None], mask_of[name])[0])


def test_the_loss_is_the_loop_and_padding_teaches_nothing(dense, taught):
  model, variables, mask_of, _ = dense
  score_LNE = lab.teacher(model, variables, mask_of)(TOKEN_BT, CTX)
  seen = CTX.replace(token_N=TOKEN_BT.ravel(), seq_len=T, vocab=VOCAB, num_experts=E)
  logit_NE = pregate.Shared(CFG).apply({"params": taught[0]}, seen)["logit_NU"]
  want, right = 0.0, 0
  for score_NE in score_LNE:
    for n in np.flatnonzero(VALID_N):
      one = slice(int(n), int(n) + 1)
      want += float(pregate.distillation(logit_NE[one], score_NE[one])[0])
      right += int(logit_NE[n].argmax()) == int(score_NE[n].argmax())
  got = lab.loss(taught[0], CFG, seen, score_LNE)
  np.testing.assert_allclose(got, (want, right), rtol=1e-5)
  assert_close(lab.loss(taught[0], CFG, seen, score_LNE.at[:, 7].add(9.0)), got)


def test_the_router_learns_what_the_dense_model_does(taught):
  _, history = taught
  assert history.shape == (60, 2)
  assert history[-1, 0] < history[0, 0] - 0.02 and history[-1, 1] >= history[0, 1] + 0.1


@pytest.mark.slow
def test_the_extracted_model_is_the_dense_one_masked_by_what_was_known_ahead(dense, taught):
  """The other side: experts as wide as the FFN, each with the rows of the other units zeroed."""
  model, variables, mask_of, size = dense
  router = {"name": "pregate", "rank": 8, "heads": 2, "gates": "one"}
  cut = config.section(
    "transform", {"name": "extract", "moe": {"num_experts": E, "router": router}}
  )
  old = {name: tree.unstack(part, model.cfg) for name, part in variables.items()}
  grown, cfg, _ = extract.apply(old, model.cfg, {"key": jax.random.key(0), "activation": size}, cut)
  grown["params"]["pregate"] = taught[0]
  run = lambda model, variables, ctx: jax.jit(lambda v: model.apply(v, TOKEN_BT, ctx)[0])(variables)
  stack = lambda by_layer, cfg: {name: tree.stack(part, cfg) for name, part in by_layer.items()}
  got = run(decoder.Model(cfg), stack(grown, cfg), CTX)

  wide = decoder.Model(config.section("model", section(hidden=F, router={"name": "topk", "k": 1})))
  params = dict(old["params"])
  for name, mask_EF in mask_of.items():
    ffn = params[name]["ffn"]
    copies = {f"{w}_EDF": jnp.stack([ffn[f"{w}_DF"]] * E) for w in ("wg", "wu")}
    wo_EFD = jnp.where(mask_EF[..., None], ffn["wo_FD"][None], 0)
    experts = {**copies, "wo_EFD": wo_EFD, "router": {"gate_DE": jnp.zeros((D, E))}}
    params[name] = {**params[name], "ffn": experts}
  seen = CTX.replace(token_N=TOKEN_BT.ravel(), seq_len=T, vocab=VOCAB, num_experts=E)
  ahead_N1 = pregate.look_ahead(taught[0], seen, CFG)
  assert len(set(np.asarray(ahead_N1).ravel().tolist())) > 1
  forced_LN1 = jnp.stack([jnp.where(VALID_N[:, None], ahead_N1, -1)] * 2)
  ctx = CTX.replace(forced_NK=forced_LN1, forced_gate_NK=jnp.ones(forced_LN1.shape))
  want = run(wide, stack({**grown, "params": params}, wide.cfg), ctx)
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_what_teaches_nothing_is_refused(dense):
  model, variables, mask_of, _ = dense
  uneven = {**mask_of, LAYERS[1]: mask_of[LAYERS[1]][:2]}
  with pytest.raises(Wrong, match=r"layers with \[2, 3\] experts, 1 batches and 5 steps teach"):
    lab.fit(model, variables, uneven, [(TOKEN_BT, CTX)], CFG, steps=5)
  with pytest.raises(Wrong, match="0 batches"):
    lab.fit(model, variables, mask_of, [], CFG, steps=5)
