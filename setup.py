# SPDX-License-Identifier: Apache-2.0
"""Packaging of thicket; tools are configured in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r"^__version__ = '(.+)'$",
  (ROOT / 'thicket' / 'version.py').read_text(encoding='utf-8'),
  re.MULTILINE,
).group(1)

setuptools.setup(
  name='thicket',
  version=VERSION,
  description='Post-training by random weight perturbations, in JAX.',
  long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['thicket', 'thicket.*']),
  package_data={'thicket': ['*.html.j2', 'page.css']},
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.1',
    'etils[epath]>=1.9',
    'flax>=0.12',
    'gguf>=0.17',  # dequantisation of GGUF blocks
    'huggingface_hub>=1.0',  # tokenizers needs it too
    'jax>=0.10',
    'jinja2>=3.1.6',  # chat templates, in its sandbox; the report
    'matplotlib>=3.9',
    'ml_collections>=1.1',
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.12',
    'rich>=13.0',
    'scipy>=1.13',
    'tokenizers>=0.21',
  ],
  extras_require={
    'cuda12': ['jax[cuda12]>=0.10'],
    'tpu': ['jax[tpu]>=0.10'],
    # For a --workdir of gs:// or s3://.
    'gcs': ['gcsfs>=2025.3'],
    's3': ['s3fs>=2025.3'],
    # Servers for tests/storage_test.py, which is skipped without them.
    'emulators': ['gcp-storage-emulator>=2026.7', 'moto[server]>=5.1'],
    # Rows: data sets that are fetched by name, Parquet files, made ones.
    'tfds': ['tensorflow-datasets>=4.9.10', 'array_record>=0.8'],
    'parquet': ['pyarrow>=17'],
    # Exactly this: the rows are what its code makes.
    'reasoning_gym': ['reasoning-gym==0.1.25'],
    'vision': ['scikit-learn>=1.5'],  # its digits, for configs/vision.py
    'math': ['math-verify>=0.9'],  # equivalent answers: math500, olympiadbench
    'test': [
      'array_record>=0.8',
      'chex>=0.1.90',
      'hypothesis>=6.100',
      'ipykernel>=6.29',
      'math-verify>=0.9',
      'ml_dtypes>=0.5',
      'nbclient>=0.10',
      'nbformat>=5.10',
      'pyarrow>=17',
      'pytest>=8.0',
      'pytest-xdist>=3.6',  # two workers: most of the time is compiling
      'safetensors>=0.5',  # reads what our own writer writes
      'scikit-learn>=1.5',
      'tensorflow-datasets>=4.9.10',
    ],
    # To compare with, never needed to run: tests of models, tokenizers and
    # exports that hold them against these are skipped without.
    'parity': ['sentencepiece>=0.2', 'torch>=2.6', 'transformers>=5.0'],
    'bench': ['torch>=2.6', 'transformers>=5.0'],
    'lint': ['ruff==0.17.6'],
  },
)
