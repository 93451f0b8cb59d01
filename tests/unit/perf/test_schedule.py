"""What lies under an exchange, in programs as the compilers of two machines write them."""

import pytest

from moejax.perf import schedule

PROGRAM = """
HloModule jit_f, is_scheduled=true, num_partitions=4

%fused (p.0: f32[8,8]) -> f32[8,8] {
  %p.0 = f32[8,8]{1,0} parameter(0)
  ROOT %dot.1 = f32[8,8]{1,0} dot(%p.0, %p.0), metadata={op_name="jit(f)/mlp/dot"}
}

%sent (p.1: f32[8,8]) -> f32[8,8] {
  %p.1 = f32[8,8]{1,0} parameter(0)
  ROOT %a2a.1 = f32[8,8]{1,0} all-to-all(%p.1), replica_groups={{0,1,2,3}}, dimensions={0}
}

%turn (p.2: f32[8,8]) -> f32[8,8] {
  %p.2 = f32[8,8]{1,0} parameter(0)
  %go = (f32[8,8]{1,0}, f32[8,8]{1,0}) all-to-all-start(%p.2), metadata={op_name="loop"}
  %in = f32[8,8]{1,0} dot(%p.2, %p.2), metadata={op_name="jit(f)/attention/dot"}
  ROOT %come = f32[8,8]{1,0} all-to-all-done(%go)
}

%test (p.3: f32[8,8]) -> pred[] {
  %p.3 = f32[8,8]{1,0} parameter(0)
  ROOT %no = pred[] constant(false)
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %before = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%fused
  %start = (f32[8,8]{1,0}, f32[8,8]{1,0}) async-start(%x), calls=%sent, metadata={op_name="there"}
  %update = (f32[8,8]{1,0}, f32[8,8]{1,0}) async-update(%start)
  %mlp = f32[8,8]{1,0} fusion(%before), kind=kOutput, calls=%fused
  %other = (f32[8,8]{1,0}, f32[8,8]{1,0}) async-start(%mlp), calls=%fused
  %done = f32[8,8]{1,0} async-done(%update)
  %after = f32[8,8]{1,0} fusion(%done), kind=kOutput, calls=%fused
  %sync = f32[8,8]{1,0} all-to-all(%after), dimensions={0}, metadata={op_name="blocks"}
  ROOT %loop = f32[8,8]{1,0} while(%sync), condition=%test, body=%turn
}
"""


def test_what_is_issued_between_start_and_end_lies_under():
  """A fusion before, one between, one after; an exchange that blocks; one in a loop."""
  found = schedule.exchanges(PROGRAM)
  assert [(one.where, one.asynchronous) for one in found] == [
    ("there", True), ("blocks", False), ("loop", True)
  ]  # fmt: skip
  under = [one.under for one in found]
  assert under == [("jit(f)/mlp/dot",) * 2, (), ("jit(f)/attention/dot",)]
  assert schedule.exchanges(PROGRAM, "all-gather") == []


def test_an_order_that_means_nothing_is_refused():
  with pytest.raises(ValueError, match="not scheduled"):
    schedule.exchanges(PROGRAM.replace("is_scheduled=true, ", ""))
