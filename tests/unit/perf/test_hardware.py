"""Peaks: a name for every number, and a CPU's cores are counted once."""

import types

import jax
import pytest

from moejax.perf import hardware
from moejax.train import mesh


def fake(kind, platform="gpu", process=0):
  return types.SimpleNamespace(device_kind=kind, platform=platform, process_index=process)


@pytest.mark.parametrize(
  ("kind", "dtype", "flops"),
  [
    ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
    ("NVIDIA H100 PCIe", "bfloat16", 756e12),
    ("NVIDIA A100-SXM4-80GB", "float32", 156e12),
    ("TPU v5 lite", "bfloat16", 197e12),
    ("TPU v5", "bfloat16", 459e12),
    ("TPU7x", "bfloat16", 1153.5e12),
  ],
)
def test_an_accelerator_has_the_rate_of_its_data_sheet(kind, dtype, flops):
  name, found = hardware.peak(dtype, [fake(kind)] * 4)
  assert (name, found) == (f"4 x {kind} {dtype} data sheet", 4 * flops)


def test_an_unknown_device_is_measured(monkeypatch):
  monkeypatch.setattr(hardware, "measured", lambda dtype: 5e12)
  assert hardware.peak("bfloat16", [fake("New Chip")] * 2)[1] == 10e12


def test_the_cores_of_a_cpu_are_counted_once_a_process(monkeypatch):
  monkeypatch.setattr(hardware, "measured", lambda dtype: 1e11)
  cpu = [fake("cpu", "cpu", process) for process in (0, 0, 1, 1)]
  assert hardware.peak("float32", cpu) == ("2 x cpu float32 matmul, measured", 2e11)
  with jax.set_mesh(mesh.make("data:8")):
    assert hardware.peak("float32") == ("cpu float32 matmul, measured", 1e11)


def test_a_measurement_is_made_once_and_does_not_use_the_mesh_in_context():
  hardware.measured.cache_clear()
  with jax.set_mesh(mesh.make("data:8")):
    first = hardware.measured("float32", size=256, seconds=0.02)
  assert 1e8 < first < 1e15
  assert hardware.measured("float32", size=256, seconds=0.02) == first
