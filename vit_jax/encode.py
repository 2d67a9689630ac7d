"""Images to codes, once: `python -m vit_jax.encode --config=... --out=D`.

  python -m vit_jax.encode --config=configs/dalle_emoji.py --out=codes

prepares the images of a configuration for text_to_image as it says, and writes
their codes by its discrete VAE with their captions: training and test data into
the folders train and test of D. A run reads them in place of the images with

  --config.data.train.source=codes:D --config.data.train.split=train \\
  --config.data.test.source=codes:D --config.data.test.split=test

and is refused if they are of another discrete VAE, or of images prepared in
another way. `--crops=8` takes eight random crops of each training image.

The same command goes on where it was stopped, with the first shard that is not
written. Several can write into one folder at the same time, each its part:
`--part=0/4` to `--part=3/4`.

A shard is written once all of it is encoded: a stop loses what each part has
done of one. Till then its codes are in memory: records x crops x codes of an
image, each of a byte, or of two if there are more than 256 to choose from. By
default a split has 200 shards, or fewer, of 4,096 records. Of 250 million
records with 8 crops, a shard has 1.25 million, which are 10 million images and
20 GB at 32 x 32 codes. `--shard=RECORDS` makes them smaller, but a split has
300 at most, since each takes three open files when it is read. To lose less
still, write parts of a split, such as 'train[:10%]', into folders of their own,
and read them as 'codes:A + codes:B', with `ulimit -n` above three times the
shards.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

import jax
from rich.console import Console

from vit_jax import command_line, config
from vit_jax.config import ConfigError
from vit_jax.training import frozen, processes, schema
from vit_jax.training import mesh as mesh_lib
from vit_jax.training.encoding import Encoder

_WEEK = 7 * 24 * 3600


def main(arguments: Sequence[str], console: Console) -> None:
  """Writes what is missing, and prints what is there."""
  options = argparse.ArgumentParser(
    prog='python -m vit_jax.encode',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  command_line.add_config(options)
  options.add_argument(
    '--out', required=True, type=pathlib.Path, help='folder to write to'
  )
  options.add_argument(
    '--only', choices=('train', 'test'), help='one of the two; both by default'
  )
  options.add_argument(
    '--crops', type=_count, default=1, help='of a training image; 1 by default'
  )
  options.add_argument(
    '--batch', type=_count, default=64, help='images at a time; 64 by default'
  )
  options.add_argument(
    '--shard',
    type=_count,
    metavar='RECORDS',
    help='of a shard, which is lost at a stop unless all of it is encoded; by '
    'default a 200th of the split, or 4096 if that is more',
  )
  options.add_argument(
    '--part', type=_part, metavar='I/N', help="one of N; by default, a host's"
  )
  known, overrides = command_line.split(options, arguments)
  names = (known.only,) if known.only else ('train', 'test')
  for name in names:
    command_line.check_folder(known.out, known.out / name)
  # A host whose shards are written waits for those that still encode.
  processes.start(patience=_WEEK)
  settings = config.resolve(config.load(known.config), overrides, schema.SCHEMA)
  teacher = None
  if settings.task.name == 'text_to_image':
    teacher = frozen.load(settings)
  if teacher is None:
    raise ConfigError(
      f'{known.config} names no discrete VAE: expected a configuration of '
      "text_to_image, with --config.task.image_codes=PATH: a run's workdir, or "
      "DALL-E's released one."
    )
  # Each process writes shards of its own, by its own devices.
  mesh = mesh_lib.make(mesh_lib.Settings(), jax.local_devices())
  part, parts = known.part or (jax.process_index(), jax.process_count())
  # Both are opened first: what is wrong with the test data is said at once, and
  # not once all training data is encoded.
  encoders = {
    name: Encoder(
      settings,
      name,
      teacher,
      mesh,
      crops=known.crops if name == 'train' else 1,
      shard_records=known.shard,
      batch_size=known.batch,
    )
    for name in names
  }
  for name, encoder in encoders.items():
    _write(encoder, known.out / name, range(part, encoder.about.shards, parts),
           console)  # fmt: skip


def _write(
  encoder: Encoder, folder: pathlib.Path, shards: range, console: Console
) -> None:
  """Writes some shards of a split, and says what there is."""
  about = encoder.about

  def say(number: int, records: int, broken: int) -> None:
    missing = f', {broken:,} cannot be read' if broken else ''
    line = f'{folder}: shard {number}: {records:,} records{missing}'
    console.print(line, highlight=False, markup=False)

  if encoder.left_out:
    line = f'{folder}: left out: {encoder.left_out}'
    console.print(line, highlight=False, markup=False)
  missing = encoder.write(folder, shards, say)
  rows, columns = about.grid
  console.print(
    f'{folder}: {about.shards - missing} of {about.shards} shards, each code '
    f'of {rows} x {columns} one of {about.vocabulary:,}.'
    + (' The others are for other parts to write.' if missing else ''),
    highlight=False,
    markup=False,
  )


def _count(text: str) -> int:
  if not re.fullmatch(r'[1-9]\d*', text):
    raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1')
  return int(text)


def _part(text: str) -> tuple[int, int]:
  """Reads 'I/N', which of how many parts."""
  if not re.fullmatch(r'\d+/[1-9]\d*', text):
    raise argparse.ArgumentTypeError(
      f'{text!r} is no part; write 0/4 for the first of four'
    )
  part, parts = map(int, text.split('/'))
  if part >= parts:
    raise argparse.ArgumentTypeError(
      f'{text!r}: parts are counted from 0 to {parts - 1}'
    )
  return part, parts


if __name__ == '__main__':
  command_line.run(main)
