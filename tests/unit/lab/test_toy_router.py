"""A router is one new file: it is in the lists, the index, the batteries, the matrix, the audit."""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import moejax
from moejax.core import config, plugin
from moejax.lab import causality, matrix, matrix_page
from moejax.report import index

ROOT = pathlib.Path(moejax.__file__).parents[1]
TOY = '''"""Toy: the experts take turns.

Paper:  Nobody 2026, arXiv:2601.00001.
Plan:   TokenPlan.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/router_shootout.py
"""

import dataclasses

import flax.linen as nn
import jax

from moejax.core import params, routing


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2


def select(logit_NU, inputs, cfg):
  """The lowest logits, for a change."""
  return routing.top_k(-logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their sigmoids."""
  return routing.take(jax.nn.sigmoid(logit_NU), expert_NK)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    return params.linear_logits(self, inputs), inputs
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """The router `toy`, in a file of another folder of the package."""
  (tmp_path / "toy.py").write_text(TOY)
  package = importlib.import_module("moejax.routers")
  monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
  yield
  sys.modules.pop("moejax.routers.toy", None)
  vars(package).pop("toy", None)


def test_one_file_is_enough_for_lists_configs_audit_and_matrix(toy):
  assert "toy" in plugin.names("routers")
  assert "  toy" in index.listing("routers") and "k: int = 2" in index.page("routers", "toy")
  (row,) = [line for line in index.markdown().splitlines() if line.startswith("| [toy]")]
  assert "| routers | Toy: the experts take turns. | Nobody 2026, [arXiv:2601.00001]" in row
  section = {"moe": {"router": {"name": "toy", "k": 1}}, "layers": [{"ffn": "moe"}]}
  assert config.section("model", section).layers[0].ffn.router.k == 1
  (row,) = causality.audit(("routers",), ["toy"])
  assert row.agrees and not row.note and row.says
  (cell,) = matrix.cells(["toy"], ["sort"], [1], [()])
  assert cell.green and not cell.refused
  assert "## toy" in matrix_page.page({"toy": matrix_page.Section("toy", [cell])})


def test_one_file_is_enough_for_the_batteries(tmp_path):
  for name in ("moejax", "tests"):
    shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
  (tmp_path / "moejax" / "routers" / "toy.py").write_text(TOY)
  (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
  command = [
    sys.executable,
    "-m",
    "pytest",
    "-n0",
    "--collect-only",
    "-p",
    "no:cacheprovider",
  ]
  files = [f"tests/conformance/test_{name}.py" for name in ("routers", "house", "causality")]
  found = subprocess.run(
    [*command, *files, "-k", "toy"], cwd=tmp_path, capture_output=True, text=True,
    env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
  )  # fmt: skip
  tests = [line for line in found.stdout.splitlines() if "toy" in line]
  for name in ("test_the_decision_is_the_loop[toy]", "[routers/toy]", "[routers-toy-0]"):
    assert any(name in line for line in tests), (name, found.stdout, found.stderr)
  assert len(tests) > 10
