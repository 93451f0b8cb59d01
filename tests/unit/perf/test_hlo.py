"""Bytes of collectives against closed forms: of a program compiled here and of written ones."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from moejax.perf import hlo

SIZES = {"data": 2, "expert": 4}
WHOLE = ("data", "expert")


def moves(x_nD):
  def body(x_nD, _):
    x_nD = lax.all_to_all(x_nD, WHOLE, 0, 0, tiled=True)
    x_mD = jnp.sin(lax.all_gather(x_nD, "expert", tiled=True))
    x_nD = lax.psum_scatter(x_mD, "expert", tiled=True)
    return lax.ppermute(x_nD, "data", [(0, 1), (1, 0)]), None

  def inner(x_nD, _):
    return lax.scan(body, x_nD, None, length=3)

  x_nD, _ = lax.scan(inner, x_nD, None, length=5)
  return lax.cond(x_nD.sum() > 0, lambda x: lax.psum(x, "data"), lambda x: 2 * x, x_nD)


def test_loops_count_as_often_as_they_run():
  mesh = jax.make_mesh(tuple(SIZES.values()), WHOLE, (AxisType.Auto,) * 2)
  on = jax.shard_map(moves, mesh=mesh, in_specs=P(WHOLE), out_specs=P(WHOLE), check_vma=False)
  text = jax.jit(on).lower(jnp.ones((64, 3))).compile().as_text()
  found = {one.kind: one for one in hlo.collectives(text)}
  whole = 8 * 3 * 4.0  # what a device has, in bytes
  got = {kind: (one.bytes, one.size, one.times) for kind, one in found.items()}
  assert got == {
    "all-to-all": (15 * whole, 8, 15),
    "all-gather": (15 * 4 * whole, 4, 15),
    "reduce-scatter": (15 * 4 * whole, 4, 15),
    "collective-permute": (15 * whole, 2, 15),
    "all-reduce": (whole, 2, 1),
  }
  over = {kind: hlo.axes(one.groups, SIZES) for kind, one in found.items()}
  assert over["all-to-all"] == WHOLE and over["all-gather"] == ("expert",)
  assert over["collective-permute"] == over["all-reduce"] == ("data",)
  assert all(one.known for one in found.values())
  assert "all-reduce" not in hlo.totals(hlo.collectives(text, min))
  # between two nodes of four: half of what 8 devices exchange; all of the permute and of the sum
  inside, between = hlo.sent(list(found.values()), lambda device: device // 4)
  assert between == 15 * (8 * whole / 2 + 8 * whole) + 8 * whole
  assert inside == 15 * (8 * whole * 3 / 8 + 2 * 8 * 3 * whole)


# Lines as other compilers write them: asynchronous pairs, layouts with tiles, loops without a
# count, fusions around collectives, groups as an iota.
PROGRAM = """
HloModule jit_f, is_scheduled=true, num_partitions=8

%test (p.0: (s32[], bf16[64,256])) -> pred[] {
  %last = s32[]{:T(128)} constant(LIMIT)
  %p.0 = (s32[]{:T(128)}, bf16[64,256]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt.3 = pred[]{:T(512)} compare(%i, %last), direction=LT
}

%all-reduce-scatter.1 (p.1: bf16[64,256]) -> bf16[16,256] {
  %p.1 = bf16[64,256]{1,0} parameter(0)
  %r = bf16[64,256]{1,0} all-reduce(%p.1), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = bf16[16,256]{1,0} dynamic-slice(%r, %p.1), dynamic_slice_sizes={16,256}
}

%body (p.2: (s32[], bf16[64,256])) -> (s32[], bf16[64,256]) {
  %p.2 = (s32[], bf16[64,256]{1,0}) parameter(0)
  %x = bf16[64,256]{1,0} get-tuple-element(%p.2), index=1
  %a-start = ((bf16[64,256]{1,0:T(8,128)(2,1)S(1)}), bf16[64,256]{1,0:T(8,128)(2,1)S(1)}, \
u32[]{:S(2)}) all-to-all-start(%x), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %a-done = bf16[64,256]{1,0} all-to-all-done(%a-start)
  %f = bf16[16,256]{1,0} fusion(%a-done), kind=kCustom, calls=%all-reduce-scatter.1
  %t = (f32[1,3]{1,0}, /*index=1*/f32[1,3]{1,0}) all-to-all(%f, /*index=1*/%f), \
replica_groups={{0,4},{1,5},{2,6},{3,7}}
  ROOT %out = (s32[], bf16[64,256]{1,0}) tuple(%x, %x)
}

ENTRY %main (p.3: bf16[64,256]) -> bf16[64,256] {
  %p.3 = bf16[64,256]{1,0} parameter(0)
  %zero = s32[] constant(2)
  %from = s32[] copy(%zero)
  %start = (s32[], bf16[64,256]{1,0}) tuple(%from, %p.3)
  %loop = (s32[], bf16[64,256]{1,0}) while(%start), condition=%test, body=%body
  %g-start = ((bf16[8]{0}, f32[4]{0}), (bf16[64]{0}, f32[32]{0})) all-gather-start(%p.3, %p.3), \
replica_groups={}, dimensions={0}
  ROOT %g-done = (bf16[64]{0}, f32[32]{0}) all-gather-done(%g-start)
}
"""


@pytest.mark.parametrize("limit, times, known", [("7", 5, True), ("%nobody", 1, False)])
def test_what_other_compilers_write_is_read(limit, times, known):
  found = hlo.collectives(PROGRAM.replace("LIMIT", limit))
  whole = 64 * 256 * 2.0
  pairs = ((0, 4), (1, 5), (2, 6), (3, 7))
  seen = [(one.kind, one.bytes / one.times, one.groups, one.dtype) for one in found]
  assert seen == [
    ("all-to-all", whole, pairs, "bf16"),
    ("reduce-scatter", whole, ((0, 1, 2, 3), (4, 5, 6, 7)), "bf16"),
    ("all-to-all", 24.0, pairs, "f32"),
    ("all-gather", 64 * 2 + 32 * 4.0, (tuple(range(8)),), "bf16+f32"),
  ]
  assert [(one.times, one.known) for one in found] == [(times, known)] * 3 + [(1, True)]


def test_groups_of_an_unknown_form_are_said():
  with pytest.raises(ValueError, match="replica groups of an unknown form"):
    hlo.collectives(PROGRAM.replace("[4,2]<=[2,4]T(1,0)", "mesh['x'=8]"))
