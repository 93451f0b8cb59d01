"""Text from a model, one token at a time, each by a full forward pass (no cache)."""

import functools

import jax
import jax.numpy as jnp

from moejax.core import dtypes, rng
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.train import restore


@functools.partial(jax.jit, static_argnums=(0, 1, 8))
def _write(model, precision, variables, token_T, length, key, temperature, vocab, count):
  """`token_T` with `count` tokens added from `length` on; the window moves when it is full."""
  T = len(token_T)

  def one(i, state):
    token_T, length = state
    moved_T = jnp.where(length == T, jnp.roll(token_T, -1), token_T)
    length = jnp.minimum(length, T - 1)
    valid_N = jnp.arange(T) < length
    ctx = RouterInputs(valid_N=valid_N, segment_N=valid_N.astype(jnp.int32))
    logit_V = model.apply(variables, moved_T[None], ctx)[0][0, length - 1].astype(jnp.float32)
    logit_V = jnp.where(jnp.arange(len(logit_V)) < vocab, logit_V, -jnp.inf)
    drawn = jax.random.categorical(
      jax.random.fold_in(key, i), logit_V / jnp.maximum(temperature, 1e-6)
    )
    token = jnp.where(temperature > 0, drawn, jnp.argmax(logit_V))
    return moved_T.at[length].set(token.astype(token_T.dtype)), length + 1, token

  def step(carry, i):
    token_T, length, token = one(i, carry)
    return (token_T, length), token

  variables = {**variables, "params": dtypes.cast(variables["params"], precision)}
  return jax.lax.scan(step, (token_T, length), jnp.arange(count))[1]


def write(model, precision, variables, tokenizer, prompt: str, tokens: int, seq_len: int,
          temperature: float = 0.8, seed: int = 0) -> str:  # fmt: skip
  """The prompt and `tokens` more tokens; temperature 0 takes the most probable one each time."""
  if tokens < 0 or temperature < 0:
    raise Wrong(f"generate: {tokens} tokens at temperature {temperature}; neither may be negative.")
  ids = tokenizer.encode(prompt)[-seq_len:] or [tokenizer.eos]
  token_T = jnp.zeros(seq_len, jnp.int32).at[: len(ids)].set(jnp.array(ids, jnp.int32))
  key = rng.stream(jax.random.key(seed), "sample")
  new = _write(
    model, precision, variables, token_T, len(ids), key, temperature, tokenizer.vocab, tokens
  )
  return prompt + tokenizer.decode(jax.device_get(new).tolist())


def from_run(workdir, prompt: str, tokens: int = 200, temperature: float = 0.8, seed: int = 0):
  """Text from the newest checkpoint of a run."""
  run = restore.load(workdir)
  how = (prompt, tokens, run.cfg.data.seq_len, temperature, seed)
  return write(run.model, dtypes.filled(run.cfg.precision), run.variables, run.tokenizer, *how)
