"""Every key of metrics.jsonl, as data: docs/metrics.md and the titles of the figures come from it.

python -m moejax.report.keys > docs/metrics.md
"""

import typing


class Key(typing.NamedTuple):
  title: str
  unit: str
  meaning: str


KINDS = {
  "train": "A logged training step.",
  "eval": "An evaluation on held-out documents.",
  "domains": "Once, at the end: loss and routing by the label of the text.",
  "placement": "Experts were to move to other slots (train.placement).",
  "stage": "The start of a stage.",
  "resume": "The run went on from a checkpoint; lines of later steps written before it are void.",
  "done": "The run came to its end.",
}
_STEP = Key("Step", "steps", "Optimiser steps since the start of the run, over all stages.")
_STAGE = Key("Stage", "", "Index of the stage, from 0.")
_TOKENS = Key(
  "Tokens", "tokens", "Trained on so far: batch size times sequence length of every step."
)
_TIME = Key("Time", "s", "Seconds since the start, evaluations included; a resumed run goes on.")
KEYS = {
  "train": {
    "step": _STEP,
    "stage": _STAGE,
    "tokens": _TOKENS,
    "time": _TIME,
    "loss": Key("Training loss", "nats per token", "Mean cross-entropy over the step's targets."),
    "balance": Key("Balance loss", "weighted", "Sum of the weighted balance losses of all layers."),
    "lr": Key("Learning rate", "", "Of this step, after its schedule."),
    "grad_norm": Key("Gradient norm", "L2", "Of all gradients, before clipping."),
    "skipped": Key("Skipped steps", "steps", "So far: loss or gradients were not finite."),
    "tokens_per_s": Key("Throughput", "tokens/s", "Since the last logged line."),
    "step_ms": Key("Step time", "ms", "Mean since the last logged line."),
    "mfu": Key("Model FLOPs utilisation", "of peak", "FLOPs per second over the named peak."),
    "flops": Key("Compute", "FLOPs", "So far: forward and backward, counted from the config."),
    "knobs": Key("Knobs", "", "Name -> value of this step, or a list of one per layer."),
    "layers": Key("Layers", "", "Per layer with a router: the table below."),
    "memories": Key("Memories", "", "Per layer with a memory: the table after that."),
  },
  "layers": {
    "load_entropy": Key("Load entropy", "of log U", "1 when all ids are chosen equally often."),
    "max_vio": Key("MaxVio", "of fair", "Excess of the fullest id over its fair share; 0 is best."),
    "dead": Key("Dead experts", "ids", "Ids that no token chose in the step."),
    "drop_fraction": Key("Dropped choices", "share", "Choices refused for want of capacity."),
    "skip_fraction": Key(
      "Skipped choices", "share", "Left out for a small gate, of all but the largest of a token."
    ),
    "spilled": Key(
      "Steps without room",
      "micro-batches",
      "In which a dispatch ran its program with room for all.",
    ),
    "margin": Key("Top-1 margin", "probability", "Of the most probable id above the second, mean."),
    "logit_norm": Key(
      "Router logit norm", "RMS", "Root mean square over the ids, mean over tokens."
    ),
    "choices": Key("Choices", "per token", "Mean number of chosen ids, virtual ones included."),
    "load": Key("Load", "share", "List by id of the share of choices that it got; sums to 1."),
    "bias_max": Key(
      "Selection bias", "largest", "Largest size of a controller's bias; absent without."
    ),
    "straggler": Key(
      "Straggler", "of mean", "Choices for the busiest owner of experts; absent with one owner."
    ),
  },
  "memories": {
    "hit": Key("Slots hit", "share", "Slots of the memory that some token of the step chose."),
    "kl": Key("Slot KL", "nats", "From even use of all slots to their use in the step; 0 is even."),
  },
  "eval": {
    "step": _STEP,
    "stage": _STAGE,
    "tokens": Key("Tokens", "tokens", "Held-out targets that the loss was averaged over."),
    "loss": Key("Validation loss", "nats per token", "Mean cross-entropy, held-out documents."),
    "perplexity": Key("Perplexity", "", "exp(loss)."),
    "bits_per_byte": Key("Bits per byte", "bits", "Loss in bits, divided by the bytes of text."),
  },
  "domains": {
    "step": _STEP,
    "labels": Key("Labels", "", "Names of the domains; every list below is in this order."),
    "tokens": Key("Tokens", "tokens", "List by label: held-out targets of that domain."),
    "loss": Key("Loss", "nats per token", "List by label."),
    "layers": Key("Routing", "share", "Layer -> [label][id]: share of the label's choices."),
  },
  "placement": {
    "step": _STEP,
    "stage": _STAGE,
    "layers": Key(
      "Layers", "", "Layer -> straggler before and after, by average loads; slots moved to."
    ),
  },
  "stage": {
    "step": _STEP,
    "stage": _STAGE,
    "name": Key("Name", "", "What the stage does."),
  },
  "resume": {"step": _STEP},
  "done": {"step": _STEP, "time": _TIME},
}


def undocumented(rows: list[dict]) -> list[str]:
  """Keys of metrics.jsonl rows that this table does not know, as kind.key.

  >>> undocumented([{"kind": "train", "step": 1, "layers": {"layer_001": {"margn": 1.0}}}])
  ['layers.margn']
  """
  found = set()
  for row in rows:
    kind = row.get("kind", "")
    found |= {f"{kind}.{key}" for key in row if key not in {"kind", *KEYS.get(kind, {})}}
    if kind == "train":
      for part in ("layers", "memories"):
        layers = (row.get(part) or {}).values()
        found |= {f"{part}.{key}" for layer in layers for key in layer if key not in KEYS[part]}
  return sorted(found)


def markdown() -> str:
  """The content of docs/metrics.md."""
  out = [
    "# metrics.jsonl",
    "",
    "One JSON object per line, written while a run goes on; `kind` says what the line is.",
    "This page is made by `python -m moejax.report.keys > docs/metrics.md`.",
  ]
  for kind, table in KEYS.items():
    about = KINDS.get(kind, f'In `train` lines, under `"{kind}": {{"layer_003": {{...}}}}`.')
    out += ["", f"## {kind}", "", about, "", "| key | unit | meaning |", "|---|---|---|"]
    out += [f"| `{key}` | {k.unit} | {k.meaning} |" for key, k in table.items()]
  return "\n".join(out) + "\n"


if __name__ == "__main__":
  print(markdown(), end="")
