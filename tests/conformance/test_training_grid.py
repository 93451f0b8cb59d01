"""Every cell of the audit: a training step on eight devices against one device in float64."""

import pytest

from moejax.lab import audit, audit_grid, audit_report

UNTAUGHT = {  # the second router of `stable` learns by a balance loss that these cells leave out
  "stable/table_VR",
  "layers_001_004/0/ffn/router/light_RE",
}
CELLS = {audit_grid.title(cell): cell for cell in audit_grid.grid()}


@pytest.fixture(scope="module")
def batch():
  return audit_report.drawn(audit_grid.RUN)


@pytest.fixture(scope="module")
def oracles():
  """Shared by the cells."""
  return {}


@pytest.mark.mesh
@pytest.mark.parametrize("name", CELLS)
def test_a_step_on_a_mesh_is_that_of_one_device(name, batch, oracles):
  [row] = audit.run(audit_grid.RUN, [CELLS[name]], batch, oracles)
  if row.refused:
    pytest.skip(row.refused)
  assert not row.misses
  assert row.choices or CELLS[name].get("router") == "soft", (
    "nothing was forced, and much may have flipped"
  )
  still = {leaf.name for leaf in row.gradients if leaf.size == 0}
  assert len(row.gradients) > 20 and still <= UNTAUGHT


def test_stages_meet_every_other_axis_under_both_schedules():
  """What the grid has to have."""
  axes = lambda cell: {word.split(":")[0] for word in cell["mesh"].split(",")}
  for schedule in ({}, audit_grid.CIRCULAR):
    met = [axes(cell) for cell in CELLS.values() if cell.get("pipeline", {}) == schedule]
    with_stages = set().union(*(found for found in met if "stage" in found))
    assert with_stages == {"data", "fsdp", "expert", "context", "tensor", "stage"}
