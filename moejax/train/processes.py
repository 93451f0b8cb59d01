"""A run of several processes: how they meet, which rows each feeds, how they agree, how they end.

JAX's own multi-controller runtime does the work (jax.distributed). Every process runs the same
program over the same mesh; only process 0 writes metrics, plots and reports, all write checkpoints.
docs/launch.md has the commands for Slurm, GKE and Cloud TPUs.
"""

import contextlib
import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core.plugin import Failed, Wrong
from moejax.train import mesh as meshes

COUNTS = {  # a launcher that JAX knows: (how many processes, and what it needs besides)
  "Slurm": ("SLURM_NTASKS", ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID")),
  "Open MPI": ("OMPI_COMM_WORLD_SIZE", ("OMPI_MCA_orte_hnp_uri",)),
}
GONE = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service", "is in error")
HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # GKE: one name per worker


def found() -> str:
  """The launcher of several processes that the environment tells of; '' for none.

  On a Cloud TPU virtual machine only its metadata server knows: say --distributed there.
  """
  for name, (count, needs) in COUNTS.items():
    if all(os.environ.get(need) for need in needs) and int(os.environ.get(count) or 1) > 1:
      return name
  return "GKE" if any("," in os.environ.get(host, "") for host in HOSTS) else ""


def start(
  coordinator="", process: int | None = None, processes=0, detect=False, timeout=100, meet=300
):
  """Joins the other processes, if there are any; before the first use of a device.

  By `coordinator` (HOST:PORT, of process 0), `process` and `processes`; or by what JAX detects, if
  `detect` is asked for or the environment tells of several processes. After `timeout` seconds
  without a sign of life of one of them, all others end; `meet` is how long they wait to start.
  """
  has = {"--coordinator": coordinator, "--processes": processes, "--process": process is not None}
  missing = [name for name, value in has.items() if not value]
  if 0 < len(missing) < len(has):
    raise Wrong(
      f"processes: {' and '.join(missing)} of {', '.join(has)} are missing; give all three, or"
      " none where JAX knows the launcher."
    )
  given = {}
  if not missing:
    assert process is not None
    if process >= processes:
      raise Wrong(f"processes: --process={process} is not one of 0..{processes - 1}; change it.")
    given = {"coordinator_address": coordinator, "num_processes": processes}
    given |= {"process_id": process, "cluster_detection_method": "deactivate"}
  elif not (detect or found()):
    return
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=timeout, initialization_timeout=meet
    )
  except (ValueError, RuntimeError) as reason:
    raise Failed(
      f"processes: they could not meet ({str(reason).splitlines()[0]}); see that all of them were"
      " started and reach the coordinator's port, and run the same commands again."
    ) from reason


def share(mesh) -> tuple[int, int]:
  """(i, n): this process feeds the i-th of n equal parts of the rows of every batch.

  Processes whose devices hold the same rows, as under tensor parallelism, feed the same part.
  """
  parts = meshes.rows(mesh)
  rows = NamedSharding(mesh, P(meshes.token_axes(mesh))).addressable_devices_indices_map((parts,))
  mine = sorted({at[0].start or 0 for at in rows.values() if at})
  first, size = mine[0], len(mine)
  if parts % size or first % size or mine != list(range(first, first + size)):
    raise Wrong(
      f"mesh: the devices of process {jax.process_index()} hold the parts {mine} of {parts} of a"
      " batch, which do not lie side by side; put the axes that cut rows first in `mesh`."
    )
  return first // size, parts // size


def is_first() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def agreed(wish: bool) -> bool:
  """Whether any process wishes it; all must ask at the same step."""
  if jax.process_count() == 1:
    return wish
  return bool(np.any(multihost_utils.process_allgather(np.array(wish))))


def fetch(values):
  """Arrays of any sharding, whole, on the host of every process; all must ask."""
  if jax.process_count() == 1:
    return jax.device_get(values)
  return multihost_utils.process_allgather(values, tiled=True)


def first(act, otherwise):
  """act() on process 0 alone; what it returns there, `otherwise` elsewhere, once it is done."""
  if jax.process_count() == 1:
    return act()
  result = act() if is_first() else otherwise
  multihost_utils.sync_global_devices("first")
  return result


def lost(reason: Exception) -> Failed | None:
  """One sentence, where an error says that another process is gone; None where it does not."""
  text = str(reason)
  if jax.process_count() == 1 or not any(word in text for word in GONE):
    return None
  return Failed(
    f"process {jax.process_index()} of {jax.process_count()} has lost another one"
    f" ({text.splitlines()[0][:160]}); the last full checkpoint is intact. Run the same commands"
    " again: they go on from there, with any number of processes."
  )


@contextlib.contextmanager
def together():
  """Inside, what JAX raises when another process is gone becomes one sentence."""
  try:
    yield
  except (RuntimeError, ValueError) as reason:
    failed = lost(reason)
    if failed is None:
      raise
    raise failed from reason
