"""Memory layers against fine-grained experts (2 CPU cores, about 40 s a run).

Run:    python -m experiments.study memory_vs_moe [--workers=2]
Expect: losses close to each other, and memories that read far fewer weights for a batch.

All arms have about 301 thousand parameters and 160 thousand forward FLOPs per token in their three
layers, attention apart. Rows of memories learn at 4 to 1 times the rate, as in UltraMemV2.
"""

from configs.base import decoder, merge

PKM = dict(name="pkm", keys=34, heads=2, k=8, key_width=32)
PEER = dict(name="peer", keys=24, heads=2, k=8, key_width=32)
ULTRAMEM = dict(
  name="ultramem", keys=42, heads=1, k=16, key_width=32, activation="identity",
  table=dict(width=32, pre=32, rows=2 * 42**2, readers=3),
)  # fmt: skip
ROWS = dict(match="P", schedule=dict(name="linear", peak=4.0, end=1.0))


def beside(memory: dict, hidden: int) -> dict:
  """Three layers with a memory beside a dense FFN that is as wide as the FLOPs allow."""
  model = dict(layers=[dict(name="memory", ffn="mlp", memory=memory)] * 3, mlp=dict(hidden=hidden))
  return dict(model=model, optim=dict(rules=[ROWS]))


ARMS = {
  "moe": dict(model=dict(moe=dict(num_experts=32, hidden=16, router=dict(name="topk", k=8)))),
  "pkm": beside(PKM, hidden=101),
  "peer": beside(PEER, hidden=99),
  "ultramem": beside(ULTRAMEM, hidden=82),
}


def get_config(arm="ultramem"):
  """The brief recipe with one arm's layers."""
  return merge(decoder.brief(), train=dict(steps=200), **ARMS[arm])
