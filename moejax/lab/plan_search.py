"""Which mesh and which rematerialisation: the plans of all sensible ones, those that fit ranked.

Meshes are expert x fsdp x tensor over all devices, with an expert axis that divides the experts and
a tensor axis of at most 8 that divides the key heads. A mesh whose parameters and moments alone
are too large is not compiled. The rank is by tokens per second of all devices if a step took its
FLOPs at the data sheet's peak, the recomputed ones included, and then its collectives: a bound for
comparison, not a forecast.
"""

import json
import math
import pathlib
import typing

import rich.console
import rich.progress

from moejax.core import config, flags, runs
from moejax.core.plugin import Failed
from moejax.lab import plan as plans
from moejax.layers import moe
from moejax.perf import machines

REMAT = {"none": 1.0, "dispatch": 4 / 3, "full": 4 / 3}  # how often a FLOP of the step is done
TENSOR = (1, 2, 4, 8)


def meshes(devices: int, experts: int, kv_heads: int) -> list[str]:
  """Texts of meshes, those with little tensor parallelism first.

  >>> meshes(8, experts=4, kv_heads=2)[:4]
  ['expert:1,fsdp:8', 'expert:2,fsdp:4', 'expert:4,fsdp:2', 'expert:1,fsdp:4,tensor:2']
  """
  out = []
  for tensor in (t for t in TENSOR if kv_heads % t == 0 and devices % t == 0):
    rest = devices // tensor
    for expert in (e for e in range(1, rest + 1) if rest % e == 0 and experts % e == 0):
      cut = f",tensor:{tensor}" if tensor > 1 else ""
      out.append(f"expert:{expert},fsdp:{rest // expert}{cut}")
  return out


def speed(plan: dict, remat: str) -> float:
  """Tokens per second of all devices, by the bound that ranks."""
  seconds = plan["seconds"]
  return plan["tokens"] / (REMAT[remat] * seconds["compute"] + seconds["links"])


def run(words: list[str], topology: str, out: str | None = None, make=plans.make) -> str:
  """Tries everything that `out` does not have yet, and prints the ranks."""
  machine = machines.find(topology)
  cfg = config.resolve(flags.parse(words))
  found = [layer for _, layer in runs.find(cfg.model.layers, moe.Config)]
  experts = math.gcd(*(layer.stored or layer.num_experts for layer in found)) if found else 1
  kinds = [getattr(getattr(layer, "attention", None), "kv_heads", 1) for layer in cfg.model.layers]
  tries = [
    (mesh, remat)
    for mesh in meshes(len(machine.devices), experts, math.gcd(*kinds))
    for remat in REMAT
  ]
  path = pathlib.Path(out or f"plan_{topology.replace(':', '_')}.jsonl")
  done = _read(path)
  console = rich.console.Console(stderr=True)
  for mesh, remat in rich.progress.track(tries, "plans", console=console):
    if (mesh, remat) not in done:
      done[mesh, remat] = _one(words, topology, mesh, remat, make)
      with path.open("a") as file:
        file.write(json.dumps({"mesh": mesh, "remat": remat, **done[mesh, remat]}) + "\n")
  return table({key: row for key, row in done.items() if key in tries}) + f"\n{path}"


def _one(words, topology, mesh, remat, make) -> dict[str, typing.Any]:
  """What a try gave, in a few numbers."""
  try:
    plan = make([*words, f"--config.model.remat={remat}"], topology, mesh)
  except Failed as reason:
    return {"fits": False, "why": str(reason).splitlines()[0]}
  return {
    "fits": plans.fits(plan),
    "peak": plan["bytes"]["peak"] / 2**30,
    "compute": plan["seconds"]["compute"],
    "links": plan["seconds"]["links"],
    "speed": speed(plan, remat),
    "why": "" if plans.fits(plan) else "its peak is more than there is",
  }


def _read(path: pathlib.Path) -> dict[tuple[str, str], dict]:
  """What an earlier search found; a last line that was cut off is tried again."""
  done = {}
  for line in path.read_text().splitlines() if path.is_file() else ():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    done[row.pop("mesh"), row.pop("remat")] = row
  return done


def table(done: dict[tuple[str, str], dict]) -> str:
  """Those that fit, the fastest first; then the others with the reason."""
  lines = [
    f"{'mesh':<28} {'remat':<6} {'peak GiB':>9} {'compute s':>10} {'links s':>9} {'tokens/s':>12}"
  ]
  fit = {key: row for key, row in done.items() if row["fits"]}
  for (mesh, remat), row in sorted(fit.items(), key=lambda item: -item[1]["speed"]):
    lines.append(
      f"{mesh:<28} {remat:<6} {row['peak']:>9.1f} {row['compute']:>10.2f} {row['links']:>9.2f}"
      f" {row['speed']:>12,.0f}"
    )
  lines += [f"{m:<28} {r:<6} no: {row['why']}" for (m, r), row in done.items() if not row["fits"]]
  return "\n".join(lines)
