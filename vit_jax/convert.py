"""Converts checkpoints: `python -m vit_jax.convert SOURCE TARGET`.

SOURCE is a released checkpoint (an .npz file, a folder or .safetensors file of
transformers, a file of OpenAI's CLIP, or a folder or file with the encoder and
decoder of DALL-E's discrete VAE) or the workdir of a run. TARGET is written in
one dialect.
"""

import argparse
import collections
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from vit_jax import command_line, released
from vit_jax.config import ConfigError
from vit_jax.training import rules, saved

# What a file of each dialect ends in; transformers' are folders.
_SUFFIXES = {'huggingface': '', 'openai': '.safetensors'}
# Where names differ only by the number of the block.
_BLOCK = re.compile(r'(encoderblock_|MixerBlock_|layer\.|block_)\d+')


def main(arguments: Sequence[str], console: Console) -> None:
  """Converts a checkpoint, or says what is in it."""
  known = _options(arguments)
  source = pathlib.Path(known.source)
  try:
    if known.inspect:
      _inspect(source, known, console)
    else:
      _convert(source, known, console)
  except (released.ReleasedError, OSError) as error:
    raise ConfigError(str(error)) from error


def _options(arguments: Sequence[str]) -> argparse.Namespace:
  options = argparse.ArgumentParser(
    prog='python -m vit_jax.convert', description=__doc__, allow_abbrev=False
  )
  options.add_argument('source', help='checkpoint, or workdir of a run')
  options.add_argument(
    'target',
    nargs='?',
    help=".npz file; for transformers a folder, for 'openai' .safetensors",
  )
  options.add_argument(
    '--dialect',
    choices=released.DIALECTS,
    help='how names are written; by default as in SOURCE, if TARGET may be so',
  )
  options.add_argument(
    '--grid',
    type=command_line.grid,
    metavar='ROWSxCOLUMNS',
    help='patches of SOURCE, where it does not tell',
  )
  command_line.add_told(options)
  options.add_argument(
    '--inspect', action='store_true', help='only say what is in SOURCE'
  )
  options.add_argument(
    '--overwrite', action='store_true', help='replace what is there'
  )
  known, overrides = command_line.split(options, arguments)
  if overrides:
    raise ConfigError(
      f'{overrides[0]} means nothing here: a checkpoint is converted as it is.'
    )
  if known.inspect == bool(known.target):
    raise ConfigError('Give a TARGET to write to, or --inspect, and not both.')
  return known


def _read_run(
  source: pathlib.Path, known: argparse.Namespace
) -> saved.Saved | None:
  """Reads the workdir of a run; None if it is none."""
  if not (source / 'checkpoints').is_dir():
    return None
  if known.grid:
    raise ConfigError(f'--grid is not for runs: {source} knows its own.')
  return saved.read(source, told=saved.told(known))


def _read(
  source: pathlib.Path, known: argparse.Namespace, run: saved.Saved | None
) -> released.Released:
  """Reads a released checkpoint, or describes a run in its place."""
  if run is None:
    return released.read(source, grid=known.grid, told=saved.told(known))
  return released.of_parameters(
    rules.by_path(run.params),
    model=run.config.model.to_dict(),
    image_shape=run.known.image_shape,
    class_names=run.known.class_names,
    preprocess=run.config.data.test.preprocess,
  )


def _convert(
  source: pathlib.Path, known: argparse.Namespace, console: Console
) -> None:
  target = pathlib.Path(known.target)
  checkpoint = _read(source, known, _read_run(source, known))
  dialect = known.dialect or _default_dialect(checkpoint, target)
  wanted = _SUFFIXES.get(dialect, '.npz')
  is_file = target.suffix in ('.npz', '.safetensors')
  if (target.suffix if is_file else '') != wanted:
    raise ConfigError(
      f'In the dialect {dialect!r} a {checkpoint.model["name"]} is written to '
      + (f'a file that ends in {wanted}' if wanted else 'a folder')
      + f', which {target} is not by its name.'
    )
  try:
    notes = released.write(
      target, checkpoint, dialect, overwrite=known.overwrite
    )
  except released.ReleasedError as error:
    hint = _other_dialects(checkpoint.model['name'], dialect)
    raise ConfigError(f'{error}{hint}') from error
  console.print(_summary(source, checkpoint))
  for line in (f'Wrote {target} in the dialect {dialect!r}.', *notes):
    console.print(line, highlight=False, markup=False)


def _other_dialects(name: str, dialect: str) -> str:
  """Returns what to try where a dialect cannot express a model."""
  possible = released.dialects_of(name)
  if dialect not in possible:
    return ''  # Then the error says which can.
  others = [other for other in possible if other != dialect]
  if not others:
    return f' There is no other dialect for a {name}.'
  return f' Try --dialect={" or ".join(others)}.'


def _default_dialect(
  checkpoint: released.Released, target: pathlib.Path
) -> str:
  """Returns what was probably meant."""
  model = checkpoint.model
  possible = released.dialects_of(model['name'])
  if target.suffix != '.npz':
    usual = 'openai' if target.suffix == '.safetensors' else 'huggingface'
    return usual if usual in possible else possible[0]
  if checkpoint.dialect not in ('vit_jax', 'huggingface'):
    return checkpoint.dialect
  if model['name'] == 'vit':
    is_google = (model['pooling'], model['position']) == ('token', 'learned')
    return 'google' if is_google else 'big_vision'
  if model['name'] == 'resnet':
    return 'bit' if model['form'] == 'pre_activation' else 'big_vision'
  return possible[0]


def _inspect(
  source: pathlib.Path, known: argparse.Namespace, console: Console
) -> None:
  """Prints what a checkpoint holds: as far as possible, of any .npz or run."""
  run = _read_run(source, known)
  checkpoint, error = None, None
  try:
    checkpoint = _read(source, known, run)
  except released.ReleasedError as caught:
    error = caught
  if run is None:
    tensors = released.tensors(source)
  else:
    tensors = checkpoint.params if checkpoint else rules.by_path(run.params)
  # First the long table, so that the summary is what remains to be seen.
  console.print(_tensors(tensors))
  if error:
    raise error
  console.print(_summary(source, checkpoint))


def _tensors(tensors: Mapping[str, np.ndarray]) -> Table:
  """Returns names, shapes and types; those of all blocks in one row."""
  times = collections.Counter(_BLOCK.sub(r'\1*', name) for name in tensors)
  table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
  table.add_column('tensor', overflow='fold')
  table.add_column('shape', overflow='fold')
  table.add_column('type', no_wrap=True)
  shown, group = set(), ''
  for name, tensor in tensors.items():
    name = _BLOCK.sub(r'\1*', name)
    block, star, rest = name.rpartition('*/')
    kind = 'bfloat16' if tensor.dtype == np.dtype('V2') else str(tensor.dtype)
    row = name, ' x '.join(map(str, tensor.shape)), kind
    if row in shown:
      continue
    shown.add(row)
    if block != group and star:
      table.add_row(f'{block}*/, {times[name]} times', '', '')
    group = block
    table.add_row(f'  {rest}' if star else name, *row[1:])
  return table


def _summary(source: pathlib.Path, checkpoint: released.Released) -> Table:
  table = Table(
    title=str(source),
    box=box.SIMPLE,
    title_justify='left',
    show_header=False,
  )
  table.add_column(style='bold', no_wrap=True)
  table.add_column(overflow='fold')
  scalars = sum(value.size for value in checkpoint.params.values())
  table.add_row('dialect', checkpoint.dialect)
  table.add_row(
    'model', '\n'.join(f'{k} = {v!r}' for k, v in checkpoint.model.items())
  )
  table.add_row(
    'parameters', f'{scalars:,} ({scalars * 4 / 2**20:,.1f} MiB in float32)'
  )
  table.add_row('classes', f'{checkpoint.num_classes:,}')
  for field in ('class_names', 'grid', 'image_shape', 'preprocess'):
    value = getattr(checkpoint, field)
    table.add_row(field.replace('_', ' '), _shown(value))
  for note in checkpoint.notes:
    table.add_row('note', note)
  return table


def _shown(value: object) -> str:
  """Spells a value that may not be known."""
  if value is None:
    return 'not known'
  if not isinstance(value, tuple):
    return str(value)
  if isinstance(value[0], str):
    return ', '.join(value[:5]) + (', ...' if len(value) > 5 else '')
  return ' x '.join(map(str, value))


if __name__ == '__main__':
  command_line.run(main)
