"""A mixture of experts against the dense model of equal active FLOPs (2 CPU cores).

Run:    python -m experiments.study topk_vs_dense [--workers=2]
Expect: topk below dense by about twice the spread over seeds; see docs/results/topk_vs_dense.json.
"""

from configs.base import decoder, merge

ARMS = {
  # The dense FFN is as wide as the two active experts together, and 16 / 3 wider for what the
  # router of 16 experts costs (rounded up, in favour of the dense model).
  "dense": dict(layers=[dict(ffn="mlp")] * 4, mlp=dict(hidden=2 * 128 + 6)),
  "topk": dict(moe=dict(num_experts=16, hidden=128, router=dict(name="topk", k=2))),
}


def get_config(arm="topk"):
  """The small recipe with one arm's layers."""
  return merge(decoder.small(), model=ARMS[arm])
