"""Whole steps against one device: sequences cut over `context`, and experts on other axes."""

import pytest

from moejax.lab import audit, audit_grid, audit_report

SECTION = {
  **audit_grid.RUN,
  "model": {**audit_grid.MODEL, "layers": [{"ffn": "moe"}]},
  "data": {"seq_len": 8, "tokenizer": "bytes"},
  "train": {"batch_size": 2},  # fewer rows than devices
}
CELLS = [
  {"mesh": "data:2,context:4", "dispatch": "sort"},
  {
    "mesh": "data:2,context:2,tensor:2",
    "dispatch": "ragged",
    "experts": "E:data+context+tensor,F:",
  },
]
MORE = [
  {"mesh": "context:4", "dispatch": "sort", "rows": 1},
  {"mesh": "context:2", "dispatch": "sort"},  # as many rows as devices: these are cut
  {"mesh": "context:2", "dispatch": "sort", "accumulate": 2},
  {"mesh": "fsdp:2,context:2,tensor:2", "dispatch": "sort"},
  {"mesh": "expert:2,context:4", "dispatch": "ragged"},
  {
    "mesh": "expert:2,context:2,tensor:2",
    "dispatch": "all_gather",
    "experts": "E:expert+tensor,F:",
  },
  {"mesh": "data:2,context:2,tensor:2", "dispatch": "ragged", "experts": "E:data,F:context+tensor"},
  {"mesh": "data:2,context:4", "dispatch": "ragged", "experts": "E:context"},
]


def agree(cells):
  for row in audit.run(SECTION, cells, audit_report.drawn(SECTION)):
    title = audit_grid.title(row.cell)
    assert not row.refused, f"{title}: {row.refused}"
    assert not row.misses, f"{title}: {row.misses}"
    assert row.gradients and row.statistics and row.state and row.choices > 0
    assert max(leaf.error for leaf in row.gradients) < 1e-5, title


def test_loss_gradients_statistics_and_state_are_those_of_one_device():
  agree(CELLS)


@pytest.mark.mesh
def test_they_are_on_every_layout():
  agree(MORE)


def test_slots_need_groups_that_lie_inside_a_device():
  """A sequence cut over devices is no group of one of them."""
  cell = {"mesh": "data:2,context:4", "dispatch": "all_to_all"}
  (row,) = audit.run(SECTION, [cell], audit_report.drawn(SECTION))
  assert "2 groups of tokens cannot be cut over 8 devices" in row.refused
