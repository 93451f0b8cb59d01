"""Sparsity at equal active FLOPs: dense and 4 to 32 experts, two of them active, at two widths.

Run:    python -m experiments.sweep --config=configs/sweeps/sparsity.py --workdir=runs/sparsity
        --workers=2
Cost:   3 CPU minutes for the largest point, so less than 30 for all ten: 15 minutes on two cores.
"""

from configs.base import decoder

EXPERTS = (4, 8, 16, 32)
WIDTHS = (64, 128)  # experts are as wide as the model, and the dense FFN twice that

DENSE = {"label": ["dense"], "model.layers": [[{"ffn": "mlp"}] * 4]}
SPARSE = {
  "zip": [
    {"label": [f"{E} experts" for E in EXPERTS]},
    {"model.moe.num_experts": list(EXPERTS)},
  ]
}
SIZES = {
  "zip": [
    {"model.width": list(WIDTHS)},
    {"model.attention.heads": [D // 32 for D in WIDTHS]},
    {"model.moe.hidden": list(WIDTHS)},
    {"model.mlp.hidden": [2 * D for D in WIDTHS]},
  ]
}
GRID = {"product": [{"chain": [DENSE, SPARSE]}, SIZES]}


def get_config():
  """The small recipe."""
  return decoder.small()
