"""The options of `vit_jax.evaluate`, and which of its tasks read them."""

import argparse
import pathlib
from collections.abc import Collection

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.evaluation import imagenet_variants, prompts

_LABELLED = ('zero_shot', 'linear_probe', 'few_shot', 'robustness')
# What only some tasks read. All others say which model is scored, or how
# figures are shown.
READ_BY = {
  'captions': ('retrieval',),
  'baseline': ('retrieval',),
  'source': _LABELLED,
  'train_source': ('linear_probe',),
  'train_split': ('linear_probe', 'few_shot'),
  'test_split': _LABELLED,
  'prompts': ('zero_shot', 'robustness'),
  'variants': ('robustness',),
  'feature': ('linear_probe', 'few_shot'),
  **dict.fromkeys(
    (
      'count', 'best_of', 'clip', 'network', 'seed', 'temperature', 'top_k',
      'top_p', 'guidance',
    ),
    ('generation',),
  ),
}  # fmt: skip


def check_read(given: Collection[str], tasks: Collection[str]) -> None:
  """Raises ConfigError for an option that none of the tasks reads.

  Args:
    given: options of the command, see `command_line.given`.
    tasks: that are run.
  """
  for name, readers in READ_BY.items():
    if name in given and not set(readers) & set(tasks):
      option = f'--{name.replace("_", "-")}'
      raise ConfigError(
        f'{option} is read only by {", ".join(readers)}, but '
        f'--tasks={",".join(tasks)} is run: leave {option} out, or add a task '
        'that reads it.'
      )


def parser(description: str) -> argparse.ArgumentParser:
  """Returns a parser of them; the description says what tasks there are."""
  options = command_line.parser(description, 'vit_jax.evaluate')
  options.formatter_class = argparse.RawDescriptionHelpFormatter
  command_line.add_model(options)
  options.add_argument(
    '--tasks', default='metrics', help='of those above, with commas'
  )
  options.add_argument(
    '--captions',
    choices=('first', 'all'),
    default='all',
    help='of each image, for retrieval',
  )
  options.add_argument(
    '--baseline',
    action='store_true',
    help='beside retrieval, what n-grams learn of colours in the training data',
  )
  options.add_argument('--source', help="labels, such as 'folder:DIR'")
  options.add_argument(
    '--train-source', help='of linear_probe, where it is another one'
  )
  options.add_argument('--train-split', help="'train' by default")
  options.add_argument('--test-split', help="'test' by default")
  options.add_argument(
    '--prompts',
    help='of zero_shot: a JSON file or one of '
    f'{", ".join(prompts.known())}; names of classes by default',
  )
  options.add_argument(
    '--variants',
    help=f'of robustness, with commas: {", ".join(imagenet_variants.VARIANTS)}',
  )
  options.add_argument(
    '--feature', help='of linear_probe and few_shot; pooled by default'
  )
  options.add_argument(
    '--count', type=int, default=1000, help='of captions, for generation'
  )
  options.add_argument(
    '--best-of', type=int, default=1, help='pictures of each that --clip ranks'
  )
  options.add_argument(
    '--clip', help='run or released checkpoint of a CLIP, for generation'
  )
  options.add_argument(
    '--network',
    help='workdir or released checkpoint whose features compare pictures, for '
    'generation: a classifier, a CLIP, or the Inception-v3 of FID',
  )
  options.add_argument(
    '--seed', type=int, default=0, help='of generation; 0 by default'
  )
  command_line.add_sampling(options)
  options.add_argument(
    '--random', action='store_true', help='score fresh parameters instead'
  )
  options.add_argument(
    '--report', type=pathlib.Path, help='Markdown file to write'
  )
  options.add_argument('--json', action='store_true', help='print JSON')
  return options
