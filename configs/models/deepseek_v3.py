"""DeepSeek-V3: 671B parameters, 37B of them active, with multi-head latent attention.

Paper:  DeepSeek-AI 2024, arXiv:2412.19437 (section 4.2), without multi-token prediction. The first
        three layers are dense. Grouped-query attention of as many heads stands in for the latent
        one, so that everything but the attention is as published.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=129_280,
        width=7168,
        tied=False,
        norm_eps=1e-6,
        attention=dict(name="gqa", heads=128, kv_heads=8, head_width=128, rope_theta=1e4),
        mlp=dict(hidden=18_432),
        moe=dict(
          num_experts=256,
          hidden=2048,
          router=dict(name="sigmoid_topk", k=8, scale=2.5, groups=8, groups_kept=4),
          shared=dict(hidden=2048, gate="one"),
        ),
        layers=[dict(ffn="mlp")] * 3 + [dict(ffn="moe")] * 58,
      )
    )
  )
