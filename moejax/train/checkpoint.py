"""Checkpoints: written in the background, whole or not at all, checked before they are believed.

checkpoints/<step>/ holds the items params, opt_state, model_state, ema and meta, and a seal: the
sizes and sums of their files, written before the folder gets its name. One that does not match its
seal is moved to damaged/ and the one before it is used.
"""

import json
import pathlib
import shutil
import zlib

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as managers

from moejax.core.plugin import Failed, Wrong
from moejax.train import processes

SEAL = "SEAL.json"
FORMAT = 1  # of meta; see CHANGELOG.md
ITEMS = ("params", "opt_state", "model_state", "ema")


class Checkpoints:
  """The checkpoints of one run. With keep=None they are read only: another process may be writing
  them, so nothing in the folder is moved, cleaned up or kept from it."""

  def __init__(self, folder, keep: int | None):
    self.folder, self.keep, self.unsealed = pathlib.Path(folder).absolute(), keep, None
    self.lost = False
    self.damaged = [] if keep is None else processes.first(self._quarantine, [])
    self.manager = self._open()

  def _open(self):
    if self.keep is None:
      options = ocp.CheckpointManagerOptions(read_only=True)
      return ocp.CheckpointManager(self.folder, options=options)
    newest = managers.LatestN(self.keep)
    # a checkpoint without an evaluation cannot be the best one
    best = managers.BestN(
      get_metric_fn=lambda metrics: metrics["loss"],
      reverse=True,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy([newest, best]),
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal_it),
    )
    return ocp.CheckpointManager(self.folder, options=options)

  def steps(self) -> list[int]:
    """The steps there are, newest first; of a folder that is only read, those that are whole."""
    steps = sorted(self.manager.all_steps(), reverse=True)
    whole = lambda step: self.keep is not None or _mismatch(self.folder / str(step)) is None
    return [step for step in steps if whole(step)]

  def save(self, step: int, state, meta: dict, loss: float | None = None) -> None:
    """Starts writing one; returns as soon as the state may change again."""
    if step in self.steps():
      return
    items = {name: getattr(state, name) for name in ITEMS}
    items = {k: ocp.args.StandardSave(v) for k, v in items.items() if jax.tree.leaves(v)}
    meta = {"format": FORMAT, "items": sorted(items), **meta}
    metrics = None if loss is None else {"loss": loss}
    try:
      self.wait()
      args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
      self.unsealed = step
      self.manager.save(step, args=args, metrics=metrics)
    except (OSError, ValueError, RuntimeError) as reason:
      raise self._unwritable(step, reason) from reason

  def wait(self) -> None:
    """Until the one being written is complete and sealed."""
    try:
      self.manager.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as reason:
      raise self._unwritable(self.unsealed, reason) from reason

  def _seal_it(self) -> None:
    """Called in the background when all is written, before the folder gets its final name."""
    for folder in self.folder.glob(f"{self.unsealed}.*"):
      _seal(folder)

  def meta(self, step: int) -> dict:
    """What was written beside the state."""
    meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta["format"] != FORMAT:
      raise Wrong(
        f"checkpoint {step} in {self.folder} has format {meta['format']}, and this moejax reads"
        f" {FORMAT}; use the version that wrote it (see environment.json), or another --workdir."
      )
    return meta

  def restore(self, step: int, like) -> dict:
    """{item: tree}; `like` has trees of shapes with shardings, on any number of devices."""
    items = {name: getattr(like, name) for name in ITEMS}
    args = {k: ocp.args.StandardRestore(v) for k, v in items.items() if jax.tree.leaves(v)}
    found = self.manager.restore(step, args=ocp.args.Composite(**args))
    return {name: found[name] if name in args else value for name, value in items.items()}

  def set_aside(self, step: int, reason: str) -> None:
    """Moves one that cannot be read out of the way; nothing is deleted."""
    self.manager.close()
    processes.first(lambda: _move(self.folder, str(step)), None)
    self.damaged.append((step, reason))
    self.manager = self._open()

  def close(self) -> None:
    """Waits, and lets go of the folder; not where another process is gone, who would be awaited."""
    if not self.lost:
      self.wait()
      self.manager.close()

  def _quarantine(self) -> list[tuple[int, str]]:
    """Moves away what does not match its seal, before orbax looks at the folder."""
    found = []
    for path in sorted(self.folder.glob("[0-9]*")):
      reason = _mismatch(path) if path.name.isdigit() else None
      if reason:
        _move(self.folder, path.name)
        found.append((int(path.name), reason))
    return found

  def _unwritable(self, step, reason):
    """One sentence for a full disk and its kin, or for a process that is gone."""
    gone = processes.lost(reason)
    if gone is not None:
      return gone
    whole = [s for s in sorted(int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit())]
    whole = [s for s in whole if s != step]
    intact = f"checkpoints {whole} are intact" if whole else "there is no earlier checkpoint"
    return Failed(
      f"the checkpoint of step {step} could not be written to {self.folder}"
      f" ({str(reason).splitlines()[0]}); {intact}. Free space or choose another --workdir, and run"
      " the same command again."
    )


def _files(path):
  """The files of the items; those beside them are orbax's own and still change."""
  return sorted(p for p in path.glob("*/**/*") if p.is_file())


def _sum(path) -> list:
  """[size, CRC-32] of a file."""
  total = 0
  with path.open("rb") as file:
    while part := file.read(1 << 22):
      total = zlib.crc32(part, total)
  return [path.stat().st_size, total]


def _seal(path) -> None:
  if jax.process_index() == 0 and path.is_dir():
    sums = {str(file.relative_to(path)): _sum(file) for file in _files(path)}
    temporary = path / f"{SEAL}.tmp"
    temporary.write_text(json.dumps(sums))
    temporary.replace(path / SEAL)


def _mismatch(path) -> str | None:
  """What is wrong with a checkpoint, if anything."""
  try:
    sums = json.loads((path / SEAL).read_text())
  except FileNotFoundError:
    return f"{SEAL} is missing"
  except ValueError:
    return f"{SEAL} is not readable"
  for name, want in sums.items():
    file = path / name
    got = _sum(file) if file.is_file() else None
    if got is None:
      return f"{name} is missing"
    if got != want:
      return (
        f"{name} has {got[0]} bytes of {want[0]}" if got[0] != want[0] else f"{name} is altered"
      )
  return None


def _move(folder, name) -> None:
  to = folder.parent / "damaged" / name
  to.parent.mkdir(exist_ok=True)
  if to.exists():
    shutil.rmtree(to)
  (folder / name).rename(to)
  logging.warning("checkpoint %s is damaged and was moved to %s", name, to)
