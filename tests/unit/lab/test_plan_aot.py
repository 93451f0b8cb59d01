"""Plans by the compilers of TPUs and GPUs: closed forms to the byte, memory that is set free."""

import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from moejax.core import axes, config, flags
from moejax.core.plugin import Failed
from moejax.lab import plan, plan_page
from moejax.perf import compiled, machines
from moejax.train import mesh as meshes
from moejax.train import phase
from pallas_kernels import aot, aot_gpu

MISSING = {"v5p:2x2x1": aot.missing(), "h200:1x4": aot_gpu.missing()}
pytestmark = pytest.mark.aot
L, E, K, D, F, T, V = 4, 8, 2, 512, 1024, 1024, 4096
MESH = "expert:2,fsdp:2"
WORDS = [
  "--config=configs/models/mixtral_8x7b.py", f"--config.model.width={D}",
  f"--config.model.vocab={V}", f"--config.model.moe.hidden={F}", "--config.model.remat=full",
  "--config.model.attention.heads=8", f"--config.data.seq_len={T}",
  f"--config.model.layers={{'depth': {L}}}", "--config.precision.params=bfloat16",
  "--config.model.moe.edits=[{'name':'capacity','factor':1.25}]",
  "--config.model.moe.dispatch.name=all_to_all",
]  # fmt: skip


@pytest.fixture(scope="module")
def made():
  """made(topology, *words): every plan is compiled once."""
  known = {}

  def make(topology, *words):
    if MISSING[topology]:
      pytest.skip(MISSING[topology])
    if (topology, words) not in known:
      known[topology, words] = plan.make([*WORDS, *words], topology, MESH)
    return known[topology, words]

  return make


def moved(found, kind, axes=None):
  """Bytes of a kind of collective, over these axes or any."""
  rows = [row for row in found["collectives"] if row["kind"] == kind]
  return sum(row["bytes"] for row in rows if axes in (None, row["axes"]))


def leaves():
  """(letters, role, shape, parts that axes other than fsdp cut it into) of every parameter."""
  machine = machines.find("v5p:2x2x1" if not MISSING["v5p:2x2x1"] else "h200:1x4")
  mesh = machines.mesh(machine, meshes.parse(MESH))
  with jax.set_mesh(mesh):
    section = flags.parse([*WORDS, "--config.train.batch_size=4"])
    params = phase.program(config.resolve(section), None, mesh).template.params
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = tuple(entry.key for entry in path)
    role = axes.role(names)
    yield axes.letters(names[-1]), role, leaf.shape, 2 if role == "experts" else 1


@pytest.mark.parametrize("topology", MISSING)
def test_rows_travel_twice_in_each_of_three_passes(made, topology):
  """2 * E * C * D * b for the layer forward, as much when it is computed again, and backward."""
  c = math.ceil(1.25 * T * K / E)
  found = made(topology)
  assert moved(found, "all-to-all") == moved(found, "all-to-all", "expert") == 6 * L * E * c * D * 2
  kept = made(topology, "--config.model.remat=dispatch")
  assert moved(kept, "all-to-all") == 4 * L * E * c * D * 2
  two_rows = 2 * L * E * c * D * 2  # what is kept of a layer: rows after both ways
  assert kept["bytes"]["kept"] - found["bytes"]["kept"] == pytest.approx(two_rows, rel=0.02)


@pytest.mark.parametrize("topology", MISSING)
def test_what_fsdp_cuts_is_gathered_and_its_gradient_scattered(made, topology):
  """Every leaf with D: its gradient once; itself forward, again, and at most once more backward."""
  found = made(topology)
  cut = [leaf for leaf in leaves() if "D" in leaf[0] and len(leaf[0]) > 1]
  size = lambda leaf: math.prod(leaf[2]) // leaf[3] * (4 if leaf[1] == "router" else 2)
  wanted = sum(map(size, cut))
  got = moved(found, "reduce-scatter", "fsdp")
  assert got == pytest.approx(wanted, rel=0.001)  # norms are among them or summed whole
  layers = sum(size(leaf) for leaf in cut if leaf[1] != "router" and "V" not in leaf[0])
  gathered = moved(found, "all-gather", "fsdp")
  assert 2 * layers <= gathered <= 3 * layers + 3 * (wanted - layers)


@pytest.mark.parametrize("topology", MISSING)
def test_nothing_else_of_size_moves(made, topology):
  """No gather of tokens, logits or experts; sums over the expert axis are gradients of the rest."""
  found = made(topology)
  large = {(r["kind"], r["axes"]) for r in found["collectives"] if r["bytes"] >= plan.SMALL}
  allowed = {("all-to-all", "expert"), ("all-gather", "fsdp"), ("reduce-scatter", "fsdp")}
  assert large <= allowed | {("all-reduce", "expert"), ("all-reduce", "expert,fsdp")}
  rest = sum(math.prod(shape) for _, role, shape, _ in leaves() if role != "experts")
  assert moved(found, "all-reduce") <= 2 * rest * 1.02  # in bfloat16, whole or cut by fsdp


def test_moments_on_the_host_are_no_arguments_of_the_device(made):
  here, away = made("v5p:2x2x1"), made("v5p:2x2x1", "--config.optim.offload=True")
  vectors = away["bytes"]["optim"]  # their moments and the counter stay
  assert vectors < 0.001 * here["bytes"]["optim"]
  moments = here["bytes"]["optim"] - vectors
  assert away["bytes"]["host"] == pytest.approx(moments, rel=0.001)  # written over where they are


def test_moments_on_the_host_lower_the_peak(made):
  """By most of what they take: parameters are written over layer by layer, no update is kept."""
  here, away = made("v5p:2x2x1"), made("v5p:2x2x1", "--config.optim.offload=True")
  freed = here["bytes"]["peak"] - away["bytes"]["peak"]
  assert 0.8 * here["bytes"]["optim"] < freed < here["bytes"]["optim"]


def test_experts_on_the_host_are_no_arguments_of_the_device(made):
  """Weights and moments leave it to the byte; the gradients of experts go to the host, too."""
  moments = made("v5p:2x2x1", "--config.optim.offload=True")["bytes"]
  away = made("v5p:2x2x1", "--config.train.offload=experts")["bytes"]
  experts = sum(2 * math.prod(shape) // 4 for _, role, shape, _ in leaves() if role == "experts")
  assert moments["params"] - away["params"] == experts
  gradients = away["host"] - moments["host"] - experts
  assert 0.99 * experts < gradients < 2.01 * experts  # in bfloat16, or float32 before they are
  assert away["peak"] < moments["peak"]


def test_experts_on_the_host_lower_the_peak_by_more_than_they_take_for_every_layer(made):
  """What a layer at work needs is there once; weights and gradients of all others are not."""
  deep, experts = f"--config.model.layers={{'depth': {2 * L}}}", L * 3 * E * D * F * 2 // 4

  def grown(word):
    few, many = made("v5p:2x2x1", word), made("v5p:2x2x1", word, deep)
    return many["bytes"]["peak"] - few["bytes"]["peak"]

  moments, away = grown("--config.optim.offload=True"), grown("--config.train.offload=experts")
  assert moments > 2 * experts and away < moments - experts


def test_a_program_that_is_too_large_is_told_in_numbers():
  if MISSING["v5p:2x2x1"]:
    pytest.skip(MISSING["v5p:2x2x1"])
  machine = machines.find("v5e:2x2")
  mesh = machines.mesh(machine, {"data": 4})
  with pytest.raises(Failed, match="parameters and moments take .* GiB of a device that has 16.0"):
    plan.make(["--config=configs/models/mixtral_8x7b.py"], "v5e:2x2", "fsdp:4")
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  x = jax.ShapeDtypeStruct((2**17, 128), jnp.float32, sharding=here)
  huge = jax.jit(lambda x: jnp.sort(x @ x.T, axis=0).sum(1))
  with jax.set_mesh(mesh), pytest.raises(compiled.Full, match="128.06G.*15.75G"):
    compiled.compile(huge.trace(x).lower(lowering_platforms=("tpu",)), "_lambda")


COMMITTED = sorted((pathlib.Path(__file__).parents[3] / "docs" / "plans").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_plan_is_what_is_compiled_today(path):
  old = plan_page.read(path)
  reason = aot_gpu.missing() if old["topology"].startswith("h200") else aot.missing()
  if reason:
    pytest.skip(reason)
  new = plan.make(old["words"], old["topology"], old["mesh"])
  assert plan.fits(new) and not plan_page.differences(old, new)
