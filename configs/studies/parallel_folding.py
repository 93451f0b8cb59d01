"""Five tables of roles over one mesh (8 virtual CPU devices).

Run:    python -m experiments.study parallel_folding [--workers=2]
Expect: the same loss for all, and bytes that are exactly those of closed forms: where `tensor` cuts
        experts rather than their width, half the slots are sent. Time on links is not measured.
"""

from configs.base import decoder, merge

ARMS = {
  "unfolded": "E:expert,F:tensor",
  "sliced": "E:data+expert,F:tensor",
  "folded": "E:expert+tensor,F:",
  "wide": "E:data+expert+tensor,F:",
  "shared": "E:expert,F:,N:tensor",
}
MESH = dict(data=2, expert=2, tensor=2)
PAPERS = {
  "folded": (
    "Experts lie over axes that cut heads in attention, without a mesh of their own.",
    "Liu et al. 2025 (MoE Parallel Folding), arXiv:2504.14960",
  ),
  "sliced": (
    "Expert slicing: more devices than experts cut each expert in its width.",
    "Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596",
  ),
  "shared": (
    "Coordinated communication: devices with the same tokens send a share each, and gather it.",
    "Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596",
  ),
}


def get_config(arm="folded"):
  """Attention with its tokens over four devices, and its heads over two."""
  model = dict(moe=dict(dispatch=dict(name="all_to_all")))
  mesh = ",".join(f"{axis}:{size}" for axis, size in MESH.items())
  return merge(decoder.spread(), model=model, mesh=mesh, roles=dict(experts=ARMS[arm]))
