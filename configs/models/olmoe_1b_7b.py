"""OLMoE-1B-7B: 6.9B parameters, 1.3B of them active.

Paper:  Muennighoff et al. 2024, arXiv:2409.02060. The queries and the keys are normalised over all
        heads together; gates are not renormalised.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=50_304,
        width=2048,
        tied=False,
        norm_eps=1e-5,
        attention=dict(
          name="gqa", heads=16, kv_heads=16, head_width=128, qk_norm="full", rope_theta=1e4
        ),
        moe=dict(
          num_experts=64,
          hidden=1024,
          router=dict(name="topk", k=8, renormalise=False),
        ),
        layers=[dict(ffn="moe")] * 16,
      )
    )
  )
