"""The file of a trace: what is written is read, and what was cut off or altered is said."""

import dataclasses

import numpy as np
import pytest

from moejax.core.plugin import Wrong
from moejax.trace import format as formats

HEAD = formats.Head(
  {"layer_001": {"K": 3, "U": 5}, "layer_004": {"K": 1, "U": 64}}, 7, "float32", ("a", "b", "c")
)


def block(step, head=HEAD, batch=0):
  """One with every id, none included, somewhere in it."""
  draw = np.random.default_rng(step)
  layers = {}
  for name, size in head.layers.items():
    shape = (head.tokens, size["K"])
    layers[name] = {
      "expert_NK": draw.integers(-1, size["U"], shape),
      "gate_NK": draw.normal(size=shape).astype(head.gates) if head.gates != "none" else None,
      "margin_N": draw.random(head.tokens).astype(np.float16),
      "boundary_N": draw.random(head.tokens).astype(np.float16) - np.float16(0.5),
    }
    layers[name]["expert_NK"][:2, 0] = -1, size["U"] - 1
  label_N = draw.integers(0, max(len(head.labels), 1), head.tokens)
  return formats.Block(step, batch, 77 * step, label_N, layers)


def write(path, steps, head=HEAD, **kw):
  writer = formats.Writer(path, head, **kw)
  for step in steps:
    writer.add(block(step, head))
  writer.close()
  return path


def same(a, b):
  assert (a.step, a.batch, a.text) == (b.step, b.batch, b.text)
  np.testing.assert_array_equal(a.label_N, b.label_N)
  for name, layer in a.layers.items():
    for key, value in layer.items():
      np.testing.assert_array_equal(value, b.layers[name][key], err_msg=f"{name} {key}")


@pytest.mark.parametrize("gates", formats.GATES)
@pytest.mark.parametrize("labels", [(), ("a",), ("a", "b", "c", "d", "e")])
def test_what_is_written_is_read(tmp_path, gates, labels):
  head = dataclasses.replace(HEAD, gates=gates, labels=labels)
  found = formats.read(write(tmp_path / "x.trace", (1, 4), head))
  assert found.head == head and found.damage is None
  for want, got in zip((block(1, head), block(4, head)), found.blocks, strict=True):
    same(want, got)


def test_a_choice_takes_as_few_bits_as_it_needs():
  for U in (1, 2, 7, 8, 255, 256):
    value = np.arange(-1, U) + 1
    width = U.bit_length()
    packed = formats.pack(value, width)
    assert 2**width > U >= 2 ** (width - 1) and len(packed) == -(-(U + 1) * width // 8)
    np.testing.assert_array_equal(formats.unpack(packed, U + 1, width), value)


def test_a_file_cut_anywhere_is_read_up_to_its_last_whole_step(tmp_path):
  data = write(tmp_path / "x.trace", (1, 2, 120)).read_bytes()
  ends = [len(write(tmp_path / f"{n}.trace", (1, 2, 120)[:n]).read_bytes()) for n in range(4)]
  cut = tmp_path / "cut.trace"
  for size in range(len(data)):
    cut.write_bytes(data[:size])
    if size < ends[0]:
      with pytest.raises(Wrong, match="is no trace" if size < 8 else "truncated or damaged within"):
        formats.read(cut)
      continue
    found = formats.read(cut)
    whole = sum(size >= end for end in ends[1:])
    assert [b.step for b in found.blocks] == [1, 2, 120][:whole]
    if size in ends:
      assert found.damage is None
    else:
      where = f"after step {found.blocks[-1].step} " if whole else "before its first step"
      assert f"cut.trace: truncated {where}" in found.damage
  same(found.blocks[1], block(2))


def test_a_changed_byte_is_found(tmp_path):
  path = write(tmp_path / "x.trace", (1, 2, 3))
  data = bytearray(path.read_bytes())
  size = len(formats.encode(HEAD, block(1))) + formats.PREFIX.size
  data[-size - 5] ^= 1  # in step 2
  path.write_bytes(data)
  found = formats.read(path)
  assert [b.step for b in found.blocks] == [1]
  assert f"damaged after step 1 (batch 0); {2 * size} bytes after it" in found.damage
  data[12] ^= 1
  path.write_bytes(data)
  with pytest.raises(Wrong, match="within its head"):
    formats.read(path)


def test_a_file_is_gone_on_with_after_the_step_that_stands(tmp_path):
  path = write(tmp_path / "x.trace", (1, 2, 3))
  path.write_bytes(path.read_bytes()[:-3])  # as by a kill
  write(path, (2, 3), keep=1)
  same(formats.read(path).blocks[1], block(2))
  assert path.read_bytes() == write(tmp_path / "y.trace", (1, 2, 3)).read_bytes()
  write(path, (9,), dataclasses.replace(HEAD, labels=()), keep=3)  # another head: another file
  assert [b.step for b in formats.read(path).blocks] == [9]


def test_another_format_or_no_file_is_refused(tmp_path, monkeypatch):
  with pytest.raises(Wrong, match="there is no file"):
    formats.read(tmp_path / "no.trace")
  monkeypatch.setattr(formats, "FORMAT", 2)
  path = write(tmp_path / "x.trace", (1,))
  monkeypatch.undo()
  with pytest.raises(Wrong, match="not of format 1"):
    formats.read(path)
