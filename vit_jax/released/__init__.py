"""Released checkpoints, in and out: names to names, in NumPy.

One file a family: `google_vit`, `bit`, `mixer` and `big_vision_clip` for the
.npz files of google-research, `openai_clip` and `openai_dvae` for OpenAI's,
`huggingface_vit` and `huggingface_clip` for those of transformers, `inception`
for the network that generated pictures are measured with. Each can find its
models in a file, and read and (but for the last) write them; nothing here runs
code from a file.
"""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.config import did_you_mean
from vit_jax.released import (
  archive,
  big_vision_clip,
  bit,
  clip_shapes,
  google_vit,
  huggingface,
  huggingface_clip,
  huggingface_vit,
  inception,
  mixer,
  openai_clip,
  openai_dvae,
  shapes,
  torchscript,
)
from vit_jax.released.checkpoint import Released, ReleasedError, describe

__all__ = [
  'DIALECTS', 'Released', 'ReleasedError', 'TOLD', 'dialects_of', 'holds',
  'is_one', 'of_parameters', 'read', 'tensors', 'write',
]  # fmt: skip

# Two towers have the tensors of a ViT, and a hybrid has those of a ResNet, so
# they come first.
_FAMILIES = (
  openai_clip, openai_dvae, inception, big_vision_clip, google_vit, mixer, bit,
)  # fmt: skip
# Those that .safetensors files hold without a config.json beside them.
_BARE = (openai_clip, openai_dvae, inception)
# What writes an .npz file, by dialect and the name of the model.
_NPZ = {
  'google': {'vit': google_vit},
  'big_vision': {'vit': google_vit, 'resnet': bit},
  'bit': {'resnet': bit},
  'mixer': {'mixer': mixer},
}
# What other dialects write.
_OTHERS = {'openai': ('clip', 'discrete_vae'), 'huggingface': ('clip', 'vit')}
DIALECTS = (*_NPZ, *_OTHERS)
# What the tensors of OpenAI's CLIP do not say, see `read`.
TOLD = openai_clip.TOLD
_NAMES_SHOWN = 8
# What no workdir of a run has in it.
_IN_FOLDERS = ('*.safetensors', 'encoder.*', 'decoder.*')
# Fields of a ViT that its parameters do not determine.
_NOT_SIZES = (
  'pooling', 'position', 'position_at', 'activation', 'norm_epsilon',
  'patch_bias', 'pre_norm',
)  # fmt: skip


def is_one(path: pathlib.Path) -> bool:
  """Returns whether a path is to be read here, and not as a run."""
  return path.is_file() or any(
    found for pattern in _IN_FOLDERS for found in path.glob(pattern)
  )


def dialects_of(name: str) -> list[str]:
  """Returns the dialects that write a model of this name."""
  return [
    dialect for dialect, names in {**_NPZ, **_OTHERS}.items() if name in names
  ]


def tensors(path: pathlib.Path | str) -> dict[str, np.ndarray]:
  """Returns the arrays of a file (see `read`) by the names that it gives.

  Raises:
    ReleasedError: the file is damaged, or of a kind that is not known.
    OSError: it cannot be read.
  """
  return _tensors_and_told(pathlib.Path(path))[0]


def _tensors_and_told(
  path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the arrays of a file, and what it says that they do not tell."""
  if huggingface.is_one(path):
    found, told = archive.read_safetensors(huggingface.weights(path))
    return found, {
      name: int(told[name]) if told[name].isdecimal() else told[name]
      for name in openai_clip.TOLD
      if name in told
    }
  if torchscript.is_one(path):
    found, classes = torchscript.read(path)
    quick = classes & {'QuickGELU', 'GELU'} == {'QuickGELU'}
    return found, {'activation': 'quick_gelu'} if quick else {}
  if parts := openai_dvae.files(path):
    return openai_dvae.joined(parts, tensors), {}
  if path.is_dir():
    raise ReleasedError(
      f'There is no released checkpoint in the folder {path}: expected '
      f"{huggingface.WEIGHTS} and {huggingface.CONFIG}, or DALL-E's encoder.* "
      'and decoder.*, which are .safetensors, .npz or .pkl.'
    )
  return archive.read_npz(path), {}


def read(
  path: pathlib.Path | str,
  *,
  grid: tuple[int, int] | None = None,
  told: Mapping[str, Any] | None = None,
) -> Released:
  """Reads a released checkpoint of a model of `vit_jax.models`.

  Args:
    path: an .npz file, a .safetensors file, a folder of transformers with
      config.json and model.safetensors (or the latter itself), a .pt archive
      of OpenAI's CLIP, a .pth file of Inception-v3, or a folder with DALL-E's
      encoder and decoder.
    grid: rows and columns of patches, where the tensors do not tell: without
      it, position embeddings are taken to be of a square grid.
    told: what the tensors of OpenAI's CLIP do not say, where the file does not
      say it either: `activation`; `image_heads` and `text_heads` where heads
      are not of 64 channels.

  Raises:
    ReleasedError: it is damaged, not understood, or not exactly what its
      model needs; the message has a table of the tensors that are not.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  found, says = _tensors_and_told(path)
  try:
    _check_told(told or {}, holds(openai_clip, found))
    is_bare = any(holds(family, found) for family in _BARE)
    if huggingface.is_one(path) and not is_bare:
      if huggingface.model_type(path) == huggingface_clip.MODEL_TYPE:
        return huggingface_clip.read(path, found, grid)
      return huggingface_vit.read(path, found, grid)
    family, prefix = _family(found)
    own = {
      name.removeprefix(prefix): tensor
      for name, tensor in found.items()
      if name.startswith(prefix) and not openai_clip.NOT_READ.fullmatch(name)
    }
    own, notes = archive.as_float32(own)
    if family is openai_clip:
      released = family.read(own, grid, {**says, **(told or {})})
    else:
      released = family.read(own, grid)
  except ReleasedError as error:
    raise ReleasedError(f'{path}: {error}') from error
  if prefix:
    notes.append(f'Names begin with {prefix}')
  others = [name for name in found if name.removeprefix(prefix) not in own]
  if others:
    notes.append(f'Not of the model, so not read: {_listed(others)}.')
  notes = (*notes, *released.notes)
  return dataclasses.replace(released, notes=notes)


def holds(family: Any, names: Iterable[str]) -> bool:
  """Whether a file has a model of a family.

  Args:
    family: one of the modules of this package, such as `inception`.
    names: of all of its tensors; they may have any prefix.
  """
  pattern = re.compile(rf'(?:.*/)?{family.BEGINNING}')
  return any(map(pattern.match, names))


def _check_told(told: Mapping[str, Any], is_openai: bool) -> None:
  """Raises ReleasedError for what nobody asked."""
  for name in told:
    if name not in openai_clip.TOLD:
      hint = did_you_mean(name, openai_clip.TOLD)
      raise ReleasedError(f'{name!r} means nothing to a reader.{hint}')
  if told and not is_openai:
    raise ReleasedError(
      f'{", ".join(told)} cannot be told of this file, which says it: only '
      "files with the names of OpenAI's CLIP do not."
    )


def _family(names: Iterable[str]) -> tuple[Any, str]:
  """Returns the family of the model in a file, and what its names begin with.

  Released files have no prefix, 'opt/target/', 'params/' or, where there are
  several models, one such as 'params/img/'.
  """
  for family in _FAMILIES:
    # The shortest prefix that will do.
    pattern = re.compile(rf'((?:.*?/)??){family.BEGINNING}')
    found = {m[1] for name in names if (m := pattern.match(name))}
    # An optimizer has the names of what it optimises.
    prefixes = {
      prefix
      for prefix in found
      if prefix.startswith('opt/target/') or not prefix.startswith('opt/')
    }
    if len(prefixes) > 1:
      raise ReleasedError(
        f'The file holds several models, under {", ".join(sorted(prefixes))}. '
        'Save the one that is meant in a file of its own.'
      )
    if prefixes:
      return family, prefixes.pop()
  raise ReleasedError(
    'no model that is known here. Its names are not those of a ViT, a hybrid, '
    'a ResNet, a Mixer or two towers of google-research, of a CLIP or a '
    f'discrete VAE of OpenAI, or of the Inception-v3 of FID: {_listed(names)}.'
  )


def _listed(names: Iterable[str]) -> str:
  """Names tensors, in groups if there are many."""
  names = list(names)
  if len(names) > _NAMES_SHOWN:
    groups = Counter('/'.join(name.split('/')[:2]) for name in names)
    names = [
      f'{group} ({number} tensors)' if number > 1 else group
      for group, number in groups.items()
    ]
  shown = ', '.join(names[:_NAMES_SHOWN])
  more = len(names) - _NAMES_SHOWN
  return f'{shown} and {more} more' if more > 0 else shown


def of_parameters(
  params: Mapping[str, np.ndarray],
  *,
  model: Mapping[str, Any],
  image_shape: Sequence[int],
  class_names: Sequence[str] | None = None,
  preprocess: str | None = None,
  statistics: Mapping[str, np.ndarray] | None = None,
  tokenizer: str | None = None,
) -> Released:
  """Describes parameters of this package, such as those of a run.

  Args:
    params: arrays by path; blocks may be stacked, as where a model scans.
    model: the section `model` of the configuration, complete but for sizes of
      images' models: those are told by the arrays.
    image_shape: height, width and channels of the images.
    class_names: of the head.
    preprocess: how images are prepared for evaluation.
    statistics: of batch normalisation, by path.
    tokenizer: see `Released`.
  """
  params, notes = archive.as_float32(_unstacked(params))
  if model['name'] == 'clip':
    image = _sizes(_below(params, 'image/'), model['image'])
    sizes = clip_shapes.sizes(model, image)
  else:
    image = sizes = _sizes(params, model)
  is_dvae = model['name'] == 'discrete_vae'
  stride = (openai_dvae if is_dvae else shapes).stride(image)
  return describe(
    'vit_jax',
    sizes,
    params,
    grid=(image_shape[0] // stride, image_shape[1] // stride),
    image_shape=tuple(image_shape),
    class_names=tuple(class_names) if class_names else None,
    preprocess=preprocess,
    notes=tuple(notes),
    statistics=dict(statistics or {}),
    tokenizer=tokenizer,
  )


def _below(
  params: Mapping[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
  return {
    path.removeprefix(prefix): value
    for path, value in params.items()
    if path.startswith(prefix)
  }


def _sizes(
  params: Mapping[str, np.ndarray], model: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the fields that say what a model of images computes."""
  shape_of = shapes.shape_of(params)
  stages = shapes.units(r'backbone/stage_(\d{1,4})/unit_(\d{1,4})/', params)
  if model['name'] == 'vit':
    depth = shapes.count(r'encoder/block_\d{2,4}/', params)
    sizes = shapes.vit_sizes(shape_of, depth, stages)
    return sizes | {name: model[name] for name in _NOT_SIZES if name in model}
  if model['name'] == 'mixer':
    return shapes.mixer_sizes(shape_of, shapes.count(r'block_\d+/', params))
  if model['name'] == 'resnet':
    return shapes.resnet_sizes(shape_of, stages, model['form'])
  if model['name'] == 'discrete_vae':
    return openai_dvae.fields(model)
  if model['name'] == 'modified_resnet':
    names = ('name', 'stages', 'width', 'num_heads')
    return {name: model[name] for name in names}
  raise ReleasedError(
    f'No released format is known for the model {model["name"]!r}.'
  )


def _unstacked(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives each block of a scanned model its own parameters."""
  result = {}
  for path, value in params.items():
    before, stacked, rest = path.partition('/blocks/')
    if stacked:
      result |= {
        f'{before}/block_{i:02d}/{rest}': part for i, part in enumerate(value)
      }
    else:
      result[path] = value
  return result


def write(
  path: pathlib.Path | str,
  released: Released,
  dialect: str,
  *,
  overwrite: bool = False,
) -> tuple[str, ...]:
  """Writes a checkpoint: each file whole, or not at all.

  Args:
    path: the .npz file or, for 'openai', the .safetensors file, or, for
      'huggingface', the folder.
    released: what to write.
    dialect: one of `DIALECTS`.
    overwrite: whether a file may be replaced.

  Returns:
    What of the checkpoint is not in what was written.

  Raises:
    ReleasedError: the dialect cannot express this model; the message says why.
    FileExistsError: the file is there already.
    OSError: it cannot be written.
  """
  path, name = pathlib.Path(path), released.model['name']
  if name == 'inception_v3':
    raise ReleasedError(
      'Inception-v3 is only read: its published file serves every program.'
    )
  if dialect not in DIALECTS:
    hint = did_you_mean(dialect, DIALECTS)
    raise ReleasedError(f'There is no dialect {dialect!r}.{hint}')
  if dialect == 'huggingface':
    family = huggingface_clip if name == 'clip' else huggingface_vit
    return family.write(path, released, overwrite)
  if dialect == 'openai':
    is_dvae = name == 'discrete_vae'
    (openai_dvae if is_dvae else openai_clip).write(path, released, overwrite)
    tokenizer = '' if is_dvae else 'the tokenizer and '
    return (f'Not in it: {tokenizer}how images are prepared.',)
  families = _NPZ[dialect]
  if name not in families:
    known = ', '.join(dialects_of(name)) or 'none'
    raise ReleasedError(
      f'The dialect {dialect!r} is one of {" and ".join(families)}, not of '
      f'{name}. Dialects of {name}: {known}.'
    )
  archive.check_new(path, overwrite)
  written = families[name].write(released, dialect)
  archive.write_npz(path, written, overwrite)
  return (
    'Not in it, as the format holds tensors only: class names and '
    'preprocessing.',
  )
