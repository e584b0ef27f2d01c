"""Installs jdc: data-centric training of language models in JAX."""

from pathlib import Path

from setuptools import find_packages, setup

PARQUET = ["pyarrow>=17"]
ZSTD = ["zstandard>=0.23"]
TFDS = ["tensorflow-datasets>=4.9.9"]
TOKENIZERS = ["tokenizers>=0.21"]
PREP = [
  *PARQUET,
  *TOKENIZERS,
  *ZSTD,
  "ahocorasick-rs>=1.0",
  "daft>=0.7.26,<0.8",
  "ftfy>=6.3",
  "numba>=0.63",
  "orjson>=3.11",
  "py3langid>=0.4,<0.5",
  "pydantic>=2.12",
  "resiliparse>=2.0",
  "warcio>=1.7.5",
]
LLM = [*PREP, "httptools>=0.6.4", "jsonschema-rs>=0.37"]
EMBEDDINGS = ["sentence-transformers>=5.0"]
AGENT = [*PREP, "pydantic-ai-slim[openai]>=2.68,<3"]
HF = [*TOKENIZERS, "jinja2>=3.1.6", "transformers>=5.0"]
# What results are compared with; this release of torch installs without CUDA.
PEERS = ["peft>=0.21", "safetensors>=0.6", "torch==2.13.0"]
TESTS = [
  "hypothesis>=6.130",
  "ipykernel>=6.29",
  "mypy>=1.18",
  "nbclient>=0.10",
  "pytest>=8.4",
  "pytest-xdist>=3.7",
  "ruff>=0.14",
  "tensorboard>=2.19",
]

setup(
  name="jdc",
  version="0.1.0",
  description="Data-centric training of language models in JAX",
  long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["jdc", "jdc.*"]),
  package_data={"jdc": ["py.typed", "prep/recipes/*.toml"]},
  install_requires=[
    "absl-py>=2.3",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "matplotlib>=3.10",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "tensorboardX>=2.6.4",
    "tqdm>=4.67",
  ],
  extras_require={
    "parquet": PARQUET,
    "zstd": ZSTD,
    "prep": PREP,
    "agent": AGENT,
    "embeddings": [*PREP, *EMBEDDINGS],
    "ray": [*PREP, "ray>=2.40"],
    "llm": LLM,
    "tfds": TFDS,
    "tokenizers": TOKENIZERS,
    "hf": HF,
    "lm_eval": [*HF, "lm-eval>=0.4.13"],
    "wandb": ["wandb>=0.19"],
    "tests": [*TESTS, *PARQUET, *ZSTD, *LLM, *AGENT, *TFDS, *HF, *PEERS],
  },
)
