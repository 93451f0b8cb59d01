"""A router that learns from a dense model which of its units a token uses, with the model at rest.

Paper:  Cai et al. 2024 (Read-ME), arXiv:2410.19123.

grow/extract.py makes experts of the units of a dense model, routers/pregate.py is the router apart.
Here the router is trained without the loss of the language: for every layer the experts of a token
have scores, by how many of the token's largest units each of them has, and the router learns the
best one and the proportions of all (`distillation`), summed over the layers. Afterwards the experts
are trained with the router at rest: an ordinary run with stages[i].trainable = "^(?!pregate/)".
Differs from the paper: there the router and the experts take turns, five times. The scores are
those of the dense model, which stays as it was, so that the router's turns do not depend on those
of the experts and all come first.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moejax.core import rng, tree
from moejax.core.plugin import Wrong
from moejax.grow import extract
from moejax.routers import pregate


def teacher(model, variables: dict, mask_of: dict) -> typing.Callable:
  """(token_BT, ctx) -> score_LNE: how well the experts fit every token, in each layer of `mask_of`.

  `mask_of` is layer_NNN -> the units of its experts [E, F], as extract.masks gives them.
  """

  def scores(token_BT, ctx):
    N = token_BT.size
    each = ctx.replace(taps=(extract.TAP,), label_N=jnp.arange(N), labels=N)  # a label per token
    by_layer = tree.unstack(model.apply(variables, token_BT, each)[1], model.cfg)
    size = {name: by_layer[name]["ffn"][f"taps/{extract.TAP}"] for name in mask_of}
    return jnp.stack([extract.scores(size[name], mask) for name, mask in mask_of.items()])

  return jax.jit(scores)


def loss(params: dict, cfg, ctx, score_LNE) -> tuple[jax.Array, jax.Array]:
  """(sum of the distillation over valid tokens and layers, how often the router takes the best)."""
  found = typing.cast(dict, pregate.Shared(cfg).apply({"params": params}, ctx))
  logit_NE = found["logit_NU"]
  valid_N = jnp.ones(len(logit_NE), bool) if ctx.valid_N is None else ctx.valid_N
  each_LN = jax.vmap(pregate.distillation, in_axes=(None, 0))(logit_NE, score_LNE)
  right_LN = score_LNE.argmax(2) == logit_NE.argmax(1)[None]
  summed = lambda a_LN: jnp.sum(jnp.where(valid_N[None], a_LN, 0))
  return summed(each_LN), summed(right_LN)


def fit(model, variables, mask_of, batches, cfg, steps: int, lr: float = 3e-3, key=None):
  """(params of the network, its history): AdamW with a cosine, over `batches` again and again.

  `model` and its `variables` are the dense ones; a batch is (token_BT, ctx), padding in
  ctx.valid_N. The history has (loss per token and layer, part of right choices) of every step. The
  params go into the model of grow/extract.py under "pregate".
  """
  counts = {len(mask_EF) for mask_EF in mask_of.values()}
  if len(counts) != 1 or not batches or steps < 1:
    raise Wrong(
      f"pregate: layers with {sorted(counts)} experts, {len(batches)} batches and {steps} steps"
      " teach nothing; give masks of equally many experts, and at least one batch and step."
    )
  key = rng.stream(jax.random.key(0) if key is None else key, "pregate")
  scores, tx = (
    teacher(model, variables, mask_of),
    optax.adamw(optax.cosine_decay_schedule(lr, steps)),
  )
  seen = lambda token_BT, ctx: ctx.replace(
    token_N=token_BT.ravel(), seq_len=token_BT.shape[1], vocab=model.cfg.vocab,
    num_experts=min(counts),
  )  # fmt: skip
  params = jax.jit(pregate.Shared(cfg).init)(key, seen(*batches[0]))["params"]

  @jax.jit
  def step(params, state, ctx, score_LNE):
    given = (cfg, ctx, score_LNE)
    (total, right), grads = jax.value_and_grad(loss, has_aux=True)(params, *given)
    valid = len(ctx.token_N) if ctx.valid_N is None else ctx.valid_N.sum()
    count = jnp.maximum(valid * len(score_LNE), 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, jnp.stack([total, right]) / count

  state, history = tx.init(params), []
  learnt = [scores(*batch) for batch in batches]  # the teacher never changes
  for i in range(steps):
    at = i % len(batches)
    params, state, row = step(params, state, seen(*batches[at]), learnt[at])
    history.append(row)
  return params, np.asarray(jax.device_get(history))
