"""Qwen2-57B-A14B: 57.4B parameters, 14.2B of them active.

Paper:  Yang et al. 2024, arXiv:2407.10671 (table 1). A sigmoid gate weighs the shared expert, as
        wide as eight routed ones.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=151_936,
        width=3584,
        tied=False,
        norm_eps=1e-6,
        attention=dict(name="gqa", heads=28, kv_heads=4, head_width=128, bias=True, rope_theta=1e6),
        moe=dict(
          num_experts=64,
          hidden=2560,
          router=dict(name="topk", k=8, renormalise=False),
          shared=dict(hidden=20_480, gate="sigmoid"),
        ),
        layers=[dict(ffn="moe")] * 28,
      )
    )
  )
