"""Qwen1.5-MoE-A2.7B: 14.3B parameters, 2.7B of them active.

Paper:  Qwen team 2024, qwenlm.github.io/blog/qwen-moe; widths as in the configuration released with
        the weights. A sigmoid gate weighs the shared expert, as wide as four routed ones.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=151_936,
        width=2048,
        tied=False,
        norm_eps=1e-6,
        attention=dict(
          name="gqa", heads=16, kv_heads=16, head_width=128, bias=True, rope_theta=1e6
        ),
        moe=dict(
          num_experts=60,
          hidden=1408,
          router=dict(name="topk", k=4, renormalise=False),
          shared=dict(hidden=5632, gate="sigmoid"),
        ),
        layers=[dict(ffn="moe")] * 24,
      )
    )
  )
