"""The scope pooled of balance/switch.py against the function it is named after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.balance import switch
from moejax.core import routing
from moejax.core.plan import RouterInputs, TokenPlan

L, B, T, E, K = 3, 2, 8, 6, 2


@pytest.mark.hf
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("padded", [False, True])
def test_pooled_is_load_balancing_loss_func(padded):
  torch = pytest.importorskip("torch", reason="needs the extra hf")
  mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
  logit_LNE = np.random.default_rng(0).normal(size=(L, B * T, E)).astype(np.float32)
  valid_BT = np.arange(T)[None] < np.array([[T], [T - 3 if padded else T]])
  want = mixtral.load_balancing_loss_func(
    tuple(torch.tensor(logit_NE) for logit_NE in logit_LNE),
    num_experts=E,
    top_k=K,
    attention_mask=torch.tensor(valid_BT) if padded else None,
  )
  cfg, valid_N = switch.Config(scope="pooled"), jnp.array(valid_BT.ravel())

  def layer(logit_NE):
    expert_NK = jnp.where(valid_N[:, None], routing.top_k(logit_NE, K), -1)
    plan = TokenPlan(expert_NK, jnp.ones((B * T, K)), E)
    inputs = RouterInputs(valid_N=valid_N, num_experts=E, seq_len=T)
    seen = switch.observe(plan, logit_NE, inputs, cfg)
    return {"count_U": plan.count_U(), **routing.statistics(logit_NE, valid_N), **seen}

  got = switch.loss(jax.vmap(layer)(jnp.array(logit_LNE)), {}, cfg)
  np.testing.assert_allclose(got, float(want), rtol=1e-5)
