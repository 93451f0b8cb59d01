"""Do experts on other axes than attention train alike, for exactly the bytes of closed forms?"""

import functools

from configs.studies.parallel_folding import ARMS, MESH  # the arms are data and live in configs/
from experiments import verdicts, virtual

CLAIM = (
  "Five tables of roles over one mesh train to the same loss within 0.1 per cent; a layer sends"
  " 2 E C D numbers where the axis of heads cuts experts or tokens, and 4 E C D where it cuts their"
  " width, with one gathering or one sum of its tokens at the border, to the byte."
)
MARGIN, COLUMNS = 0.001, ("all-to-all", "all-gather", "all-reduce")


@functools.cache
def moved(arm: str) -> dict:
  """Bytes of the forward pass of one layer on one device, and what the closed forms say."""
  found, size = virtual.forward({"name": "all_to_all"}, MESH, ARMS[arm])
  slots = size["E"] * size["c"] * size["D"] * virtual.NUMBER  # of an eighth of the tokens
  tokens = size["N"] // (MESH["data"] * MESH["expert"]) * size["D"] * virtual.NUMBER
  by_width = ARMS[arm].endswith("F:tensor")
  wanted = {"all-to-all": (4 if by_width else 2) * slots}
  wanted["all-reduce" if by_width else "all-gather"] = tokens
  bytes_of = {kind.replace("-", "_"): found.get(kind, 0.0) for kind in COLUMNS}
  return {**bytes_of, "exact": float(found == wanted)}


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  arm = next(arm for arm, text in ARMS.items() if text == run.config["roles"]["experts"])
  return {"loss": run.last("loss", "eval"), **moved(arm)}


def verdict(table) -> str:
  """Equal losses and exact bytes: the weaker word of the two."""
  same = verdicts.close(table, "loss", tuple(ARMS), MARGIN)
  exact = all(table.values(arm, "exact").all() for arm in ARMS)
  sent = ", ".join(f"{arm} {table.values(arm, 'all_to_all')[0]:.0f}" for arm in ARMS)
  bytes_are = f"{'holds' if exact else 'fails'}: bytes sent by a device {sent}"
  return f"{verdicts.weakest(same, bytes_are)}: {same}; {bytes_are}"
