"""Notebooks run from top to bottom, are stored without output, and start with their install."""

import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FILES = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_output(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert not any(cell.outputs or cell.execution_count for cell in cells)
  assert "pip install" in cells[0].source
  assert sum("pip install" in cell.source for cell in cells) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch, tmp_path):
  monkeypatch.setenv("MOEJAX_FAST", "1")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  notebook = nbformat.read(path, as_version=4)
  where = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
  shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  figures = [output for output in shown if "image/png" in output.get("data", {})]
  assert len(figures) >= 4
  said = "".join(output.get("text", "") for output in shown)
  assert "expert 0" in said and "Warning" not in said
