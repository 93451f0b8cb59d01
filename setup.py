"""Packaging: what moejax needs, and what each extra adds."""

import pathlib

import setuptools

EXTRAS = {
  "gpu": ["jax[cuda13]>=0.10.2"],
  "tpu": ["jax[tpu]>=0.10.2"],
  "hf": ["transformers>=5.0", "torch>=2.9"],
  "sweep": ["ray>=2.50"],
  "track": ["wandb>=0.22"],
  "aot": ["libtpu>=0.0.40"],
  "aot-gpu": [
    *(f"jax-cuda13-{part}>=0.10.2" for part in ("plugin", "pjrt")),
    *(f"nvidia-{part}" for part in ("cuda-nvcc", "cuda-runtime", "nvjitlink", "nvshmem-cu13")),
  ],
  "data": ["scikit-learn>=1.7", "scikit-image>=0.26", "sktime>=1.0", "vega_datasets>=0.9"],
  "notebooks": ["jupytext>=1.17", "nbclient>=0.10", "ipykernel>=6.29", "nbformat>=5.10"],
}
EXTRAS["test"] = ["pytest>=8.4", "pytest-xdist>=3.8", *EXTRAS["notebooks"]]
EXTRAS["dev"] = [
  *EXTRAS["test"],
  "ruff>=0.14",
  "import-linter>=2.6",
  "pyright>=1.1.400",
  "codespell>=2.4",
]

setuptools.setup(
  name="moejax",
  version="0.1.0",
  description="A workbench for mixture-of-experts research in JAX",
  long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(
    include=["moejax*", "configs*", "pallas_kernels*", "experiments*"]
  ),
  package_data={"pallas_kernels": ["tables/*.json"]},
  install_requires=[
    "jax>=0.10.2",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "ml-collections>=1.0",
    "tensorflow-datasets>=4.9.9",
    "array-record>=0.8; sys_platform != 'win32'",
    "grain>=0.2.12",
    "tokenizers>=0.22",
    "safetensors>=0.6",
    "rich>=14.0",
    "matplotlib>=3.10",
    "tensorboardX>=2.6",
    "etils>=1.13",
    "absl-py>=2.3",
    "importlib_resources>=6.0",
  ],
  extras_require=EXTRAS,
)
