"""Package metadata. Tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "lepton_jax/__init__.py").read_text(encoding="utf-8"))[1]
EXPERIMENTS = ["optuna>=4", "pandas>=2.2", "submitit>=1.5"]
DOCS = ["furo>=2024", "myst-parser>=4", "sphinx>=8"]

setup(
    name="lepton_jax",
    version=VERSION,
    description="Transformers from raw text to a served int8 model, in JAX and Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["lepton_jax", "lepton_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "flatbuffers>=24",  # in which jax.export writes programs
        "flax>=0.12",
        "grain>=0.2.18",
        "importlib_resources",  # tensorflow-datasets needs it where TensorFlow is absent
        "huggingface_hub>=0.30",
        "jax>=0.10.2",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "ml_dtypes>=0.5",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "protobuf>=5",  # the schema in which SentencePiece keeps its models
        "rich>=13",
        "safetensors>=0.5",
        "pyarrow>=16",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "sentencepiece>=0.2.3",
        "seqeval>=1.2.2",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9",
        "threadpoolctl>=3",
        "tokenizers>=0.23.1",
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "onnx": ["onnx>=1.17"],
        "experiments": EXPERIMENTS,
        "notebooks": [*EXPERIMENTS, "ipykernel>=6", "nbclient>=0.10"],
        "wandb": ["wandb>=0.31"],
        "docs": DOCS,
        "parity": ["torch>=2.6", "transformers>=5"],
        "dev": [
            *EXPERIMENTS,
            *DOCS,
            "ipykernel>=6",
            "nbclient>=0.10",
            "hypothesis>=6.100",
            "onnx>=1.17",
            "onnxruntime>=1.20",  # runs what is exported
            "pyright>=1.1.390",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "tensorboard>=2.18",
            "transformers>=5",  # what our tokenizers are compared with; it needs no PyTorch for that
        ],
    },
)
