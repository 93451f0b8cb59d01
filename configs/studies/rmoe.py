"""A router with memory over depth against routers without (2 CPU cores, about 40 s a run).

Run:    python -m experiments.study rmoe [--workers=2]
Expect: recurrent lowest, stopped between recurrent and the routers without memory; the choices of
        neighbouring layers tell more about each other with memory.
"""

from configs.base import decoder, merge

ARMS = {
  "linear": dict(name="topk", k=2),
  # as many numbers as the recurrent router: 6 * 20 * (64 + 8) against
  # 6 * 16 * (64 + 8) in the layers and 6 * 16^2 + 6 * 16 in the unit (one per cent apart)
  "mlp": dict(name="mlp", k=2, rank=20),
  "recurrent": dict(name="recurrent", k=2, rank=16),
  "stopped": dict(name="recurrent", k=2, rank=16, stop_gradient=True),
}


def get_config(arm="linear"):
  """The brief recipe with six layers, since memory needs depth, and one arm's router."""
  return merge(
    decoder.brief(),
    model=dict(layers=[dict(ffn="moe")] * 6, moe=dict(router=ARMS[arm])),
    train=dict(steps=120, eval_every=60),
  )
