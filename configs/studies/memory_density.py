"""More rows for a token against a larger table, at equal FLOPs (2 CPU cores, about 40 s a run).

Run:    python -m experiments.study memory_density [--workers=2]
Expect: twice the rows of a token to help more than twice the table.
"""

from configs.base import decoder, merge
from configs.studies.memory_vs_moe import ULTRAMEM, beside

TWICE = dict(width=32, pre=32, rows=2 * 60**2, readers=3)

ARMS = {  # the FFN pays for what the memory costs more
  "base": beside(ULTRAMEM, hidden=82),
  "more_k": beside({**ULTRAMEM, "k": 32}, hidden=68),
  "more_rows": beside({**ULTRAMEM, "keys": 60, "table": TWICE}, hidden=76),
}


def get_config(arm="base"):
  """The brief recipe with one arm's layers."""
  return merge(decoder.brief(), train=dict(steps=200), **ARMS[arm])
