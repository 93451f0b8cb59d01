"""Does Tutel's one layout give every r the same training, for exactly the bytes of its formulas?"""

import functools

from configs.studies.adaptive import ARMS  # the arms are data and live in configs/
from experiments import verdicts, virtual

CLAIM = (
  "From one layout of the weights, r = 0, 1, 2 and 4 train to the same loss within 0.1 per cent,"
  " and a layer sends 2 r E C D numbers and gathers its weights over owners times r, to the byte."
)
MARGIN, COLUMNS = 0.001, ("all-to-all", "all-gather")


@functools.cache
def moved(r: int) -> dict:
  """Bytes of the forward pass of one layer on one device, and what the formulas say."""
  found, size = virtual.forward({"name": "adaptive", "r": r}, {"expert": 2, "tensor": 4})
  buffer = size["E"] * size["c"] * size["D"] * virtual.NUMBER
  weights = 3 * size["E"] * size["D"] * size["F"] * virtual.NUMBER
  sent, gathered = 2 * r * buffer, 0 if r == 4 else weights / (2 * r) if r else weights
  return {
    **{kind.replace("-", "_"): found.get(kind, 0.0) for kind in COLUMNS},
    "exact": float(found == {k: v for k, v in zip(COLUMNS, (sent, gathered), strict=True) if v}),
  }


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  r = run.config["model"]["layers"][0]["ffn"]["dispatch"]["r"]
  return {"loss": run.last("loss", "eval"), **moved(r)}


def verdict(table) -> str:
  """Equal losses and exact bytes: the weaker word of the two."""
  same = verdicts.close(table, "loss", tuple(ARMS), MARGIN)
  exact = all(table.values(arm, "exact").all() for arm in ARMS)
  sent = ", ".join(f"{arm} {table.values(arm, 'all_to_all')[0]:.0f}" for arm in ARMS)
  bytes_are = f"{'holds' if exact else 'fails'}: bytes sent by a device {sent}"
  return f"{verdicts.weakest(same, bytes_are)}: {same}; {bytes_are}"
