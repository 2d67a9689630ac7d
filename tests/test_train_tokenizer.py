"""`python -m vit_jax.train_tokenizer` writes merges and says what they do."""

import io

import pytest
from rich.console import Console

from vit_jax import train_tokenizer
from vit_jax.config import ConfigError
from vit_jax.data.tokenizer import Tokenizer, read_merges, train_merges


def run(*arguments):
  written = io.StringIO()
  train_tokenizer.main(arguments, Console(file=written, width=200))
  return written.getvalue()


def test_merges_are_trained_on_all_sources(tmp_path):
  captions, output = tmp_path / 'captions.txt', tmp_path / 'merges.txt.gz'
  captions.write_text('zebra zebra\nzebra café\n' * 50, encoding='utf-8')
  said = run(
    str(captions),
    'shapes',
    '--split=train[:50]',
    '--size=560',
    '--context=9',
    f'--output={output}',
  )
  trained = Tokenizer(read_merges(output))
  assert trained.size == 560
  assert len(trained.encode('zebra')) == 1
  assert len(trained.encode('circle')) < 6
  assert '560 token ids' in said
  assert 'of 150:' in said and 'context of 9' in said


def test_figures_are_of_the_captions(tmp_path):
  captions, output = tmp_path / 'captions.txt', tmp_path / 'merges.txt'
  captions.write_text('aa\nbb bb bb\naa\naa\n')
  said = run(str(captions), '--size=600', '--context=4', f'--output={output}')
  assert read_merges(output) == train_merges(['aa', 'bb bb bb', 'aa aa'], 600)
  assert '1.5 on average, at most 3. 25.00% do not fit' in said


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['nothing.txt'], 'nothing.txt'),
    (['shape'], 'unknown source'),
    (['shapes'], "no end: name a part, such as --split='train"),
    (['shapes', '--split=val'], 'no split'),
    (['shapes', '--split=train[:9]', '--size=100'], 'size is 100'),
  ],
)
def test_what_cannot_work_is_refused(tmp_path, arguments, message):
  with pytest.raises(ConfigError, match=message):
    run(*arguments, f'--output={tmp_path / "merges.txt"}')
  assert not list(tmp_path.iterdir())
