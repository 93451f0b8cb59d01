"""Shortcut-connected MoE against the same parts in turn (2 CPU cores, half a minute a run).

Run:    python -m experiments.study shortcut [--workers=2]
Expect: equal quality at equal FLOPs and parameters; the shortcut is there for what it lets a
        machine overlap, which this study does not measure.
"""

from configs.base import decoder, merge

HIDDEN = 128  # of the dense FFNs
ARMS = {
  # added right where it was read, beside the first dense FFN: a shared expert
  "serial": dict(
    layers=[
      dict(ffn="moe", moe=dict(shared=dict(hidden=HIDDEN, gate="one"))),
      dict(ffn="mlp"),
    ]
    * 2,
  ),
  # added after the second attention and the second dense FFN
  "shortcut": dict(layers=[dict(name="shortcut")] * 2),
}


def get_config(arm="shortcut"):
  """The brief recipe with four attentions, four dense FFNs and two MoE layers."""
  return merge(decoder.brief(), model=dict(mlp=dict(hidden=HIDDEN), **ARMS[arm]))
