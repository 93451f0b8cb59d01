"""The rules of the house that a machine can check."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = [p for d in ("moejax", "pallas_kernels") for p in sorted((ROOT / d).rglob("[a-z]*.py"))]
MECHANISMS = [p for p in FILES if p.parent.name in ("routers", "edits", "balance")]


@pytest.mark.parametrize("path", MECHANISMS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_mechanism_names_its_paper_and_its_study(path):
  text = path.read_text()
  assert re.search(r"^Paper:  .*\d{4}", text, re.M)
  assert re.search(r"^(Plan|Sums|State):", text, re.M)
  study = re.search(r"^Study:  (\S+)", text, re.M).group(1)
  assert (ROOT / study).exists(), f"{path} names {study}, which is not there"


def test_lifted_transforms_live_in_the_stack_alone():
  lifted = re.compile(r"nn\.(scan|remat|vmap|jit|checkpoint|while_loop|cond)\b")
  assert [p.name for p in FILES if lifted.search(p.read_text())] == ["stack.py"]
