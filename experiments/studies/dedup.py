"""What crosses between nodes when a token does so once, and does training notice?"""

import functools

from configs.studies.dedup import ARMS  # the arms are data and live in configs/
from experiments import verdicts, virtual
from experiments.benches import parallel

CLAIM = (
  "Flat, hierarchical, ragged and deduplicated dispatch train to the same loss within 0.1 per cent;"
  " hierarchical sends as many bytes between nodes as flat, deduplicated fewer than ragged."
)
MARGIN = 0.001


@functools.cache
def moved() -> dict:
  """Bytes between two nodes of four, of the layer of the benchmark `parallel`."""
  virtual.devices()
  options = {**parallel.OPTIONS, "cases": ",".join(ARMS), "rounds": 1}
  return {row["case"]: row["between MB"] for row in parallel.run(options)}


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  name = run.config["model"]["layers"][0]["ffn"]["dispatch"]["name"]
  return {"loss": run.last("loss", "eval"), "between_mb": moved()[name]}


def verdict(table) -> str:
  """Equal losses, and the order of the bytes: the weaker word of the two."""
  same = verdicts.close(table, "loss", tuple(ARMS), MARGIN)
  mb = {arm: table.values(arm, "between_mb")[0] for arm in ARMS}
  good = mb["hierarchical"] == mb["all_to_all"] and mb["dedup"] < mb["ragged"]
  bytes_are = "holds" if good else "fails"
  bytes_are += f": MB between nodes {', '.join(f'{arm} {value:.2f}' for arm, value in mb.items())}"
  return f"{verdicts.weakest(same, bytes_are)}: {same}; {bytes_are}"
