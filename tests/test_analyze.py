"""What a person asks of `analyze`, and what they see."""

import base64
import csv
import io
import itertools
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vit_jax import analyze, config
from vit_jax.analysis import embeddings, study
from vit_jax.analysis.pictures import QUESTIONS
from vit_jax.training import schema

TESTS = pathlib.Path(__file__).parent
GOLDENS = TESTS / 'goldens'
DIGITS = TESTS.parent / 'configs' / 'digits.py'
SMALL = (f'--config={DIGITS}', '--config.model.depth=1')


def call(*arguments):
  """Returns what the command prints on a terminal of 80 columns."""
  console = Console(file=io.StringIO(), width=80)
  analyze.main([str(argument) for argument in arguments], console)
  text = console.file.getvalue()
  assert max(map(len, text.splitlines())) <= 80
  return text


def test_compute_prints_and_writes_the_same(tmp_path):
  file = tmp_path / 'cost.json'
  text = call('compute', *SMALL, '--utilisation=0.25', f'--json={file}')
  cost = json.loads(file.read_text())
  assert f'{cost["parameters"]:,}' in text
  assert 'Time at 25% of the peak' in text
  core = cost['days']['TPU v3']
  assert core['of'] == 'core'
  # Seconds of one core, from the arithmetic of the whole run.
  seconds = cost['training_exaflops'] * 1e18 / (0.25 * 61.5e12)
  assert core['days'] == pytest.approx(seconds / 86_400)
  images = cost['training_images']
  flops = 6e9 * cost['forward_gmacs'] * images
  assert cost['training_exaflops'] * 1e18 == pytest.approx(flops)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of three images, and a file that is none."""
  folder = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for name in 'abc':
    pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{name}.png')
  (folder / 'd.png').write_text('no image')
  return folder


def test_everything_that_a_model_has_on_one_page(photos, tmp_path):
  golden = GOLDENS / 'hybrid_stem.npz'
  text = call(
    'all', f'--checkpoint={golden}', f'--images={photos}',
    f'--out={tmp_path}', '--html',
  )  # fmt: skip
  assert text.count('skipped, cannot be used: d.png') == 1
  page = (tmp_path / 'index.html').read_text()
  pictures = re.findall('src="data:image/png;base64,([^"]+)"', page)
  assert len(pictures) == page.count('src=') == len(QUESTIONS)
  assert 'http' not in page and '<script' not in page
  for (name, question), picture in zip(QUESTIONS.items(), pictures):
    assert base64.b64decode(picture) == (tmp_path / f'{name}.png').read_bytes()
    title, reading, made_of = (
      (tmp_path / f'{name}.txt').read_text().strip().split('\n\n')
    )
    assert title == question.title and title in page
    assert ' '.join(reading.split()[:5]) in text and reading in page
    assert made_of.startswith(f'Made from {golden}')
    assert ('with 3 images' in made_of) == bool(question.examples)
  maps = np.load(tmp_path / 'attention-map.npz')['maps']
  assert len(maps) == len([*(tmp_path / 'attention-map').iterdir()]) == 3
  np.testing.assert_allclose(maps.mean((1, 2)), 1, atol=1e-5)
  # A hybrid sees pixels with its ResNet.
  kernel = np.load(golden)['params/conv_root/kernel']
  expected, _ = embeddings.principal_filters(kernel, 28)
  found = np.load(tmp_path / 'filters.npz')['components']
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_a_model_lacks_is_left_out(photos, tmp_path):
  text = call(
    'all', f'--checkpoint={GOLDENS / "mixer.npz"}', f'--images={photos}',
    f'--out={tmp_path}', '--number=2',
  )  # fmt: skip
  made = {path.stem for path in tmp_path.glob('*.png')}
  assert made == {'filters', 'neighbours', 'features'}
  for name in QUESTIONS.keys() - made:
    assert f'{name} is left out' in text
  assert len(np.load(tmp_path / 'features.npz')['names']) == 2


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Folders such as sweeps of two models leave them."""
  folder = tmp_path_factory.mktemp('runs')
  for depth, share in itertools.product((1, 2), (10, 100)):
    values = (
      f'--config.model.depth={depth}',
      f'--config.data.train.split=train[:{share}%]',
    )
    resolved = config.resolve(config.load(str(DIGITS)), values, schema.SCHEMA)
    run = folder / f'depth-{depth}' / f'{share}'
    run.mkdir(parents=True)
    (run / 'config.json').write_text(json.dumps(resolved.to_dict()))
    rows = (
      (1, 'test/accuracy', 0.9),
      (2, 'test/accuracy', depth * share / 1e3),
      (3, 'train/loss', 1.0),
    )
    text = (json.dumps({'step': step, name: x}) for step, name, x in rows)
    (run / 'metrics.jsonl').write_text('\n'.join(text))
  (folder / 'started').mkdir()
  (folder / 'started' / 'config.json').write_text('{}')
  return folder


@pytest.mark.parametrize(
  'x,lines,expected',
  [
    (
      'examples', (),
      [('depth-1', 144), ('depth-1', 1437), ('depth-2', 144),
       ('depth-2', 1437)],
    ),
    (
      'config.model.depth', ('--lines=config.data.train.split',),
      [('train[:10%]', 1), ('train[:10%]', 2), ('train[:100%]', 1),
       ('train[:100%]', 2)],
    ),
  ],
)  # fmt: skip
def test_a_study_collects_runs(x, lines, expected, runs, tmp_path):
  text = call(
    'study', f'--workdir={runs}', f'--x={x}', f'--out={tmp_path}', *lines
  )
  with (tmp_path / 'study.csv').open() as file:
    rows = [*csv.DictReader(file)]
  assert [(row['line'], int(row['x'])) for row in rows] == expected
  for row in rows:
    depth, share = row['run'].removeprefix('depth-').split('/')
    assert float(row['test/accuracy']) == int(depth) * int(share) / 1e3
    assert row['step'] == '2' and row['line'] in text
  assert (tmp_path / 'study.png').stat().st_size > 1_000
  said = (tmp_path / 'study.txt').read_text()
  assert 'Each dot is one run' in said and '4 runs' in said


def test_compute_of_a_study_is_that_of_analyze_compute(runs, tmp_path):
  call('study', f'--workdir={runs}', '--x=exaflops', f'--out={tmp_path}')
  with (tmp_path / 'study.csv').open() as file:
    found = [float(row['x']) for row in csv.DictReader(file)]
  cost = tmp_path / 'cost.json'
  call('compute', *SMALL, f'--json={cost}')
  expected = json.loads(cost.read_text())['training_exaflops']
  assert found[1] == pytest.approx(expected)


def test_a_study_of_words_orders_them_by_what_they_reach():
  values = (('none', 'a', 0.5), ('late', 'a', 0.7), ('early', 'b', 0.6))
  points = [study.Point('run', line, x, y, 1) for x, line, y in values]
  (axes,) = study.draw(points, 'config.x', 'test/accuracy').axes
  names = [label.get_text() for label in axes.get_xticklabels()]
  assert names == ['none', 'early', 'late']
  first, _ = axes.get_lines()
  assert first.get_xdata().tolist() == ['none', 'late']
  assert first.get_linestyle() == 'None'


VIT = ('attention-map', f'--checkpoint={GOLDENS / "vit_gap.npz"}')


@pytest.mark.parametrize(
  'arguments,message',
  [
    (('computer',), "'computer' cannot be analysed. Did you mean 'compute'"),
    (('compute', *SMALL, '--utilisation=40'), 'not a share of the peak'),
    (('compute', *SMALL, '--utilization=.4'), "Did you mean '--utilisation'"),
    (('filter', '--workdir=x'), "Did you mean 'filters'"),
    (VIT, '--out is missing'),
    (('study', '--out=x', '--workdir=x'), '--x is missing'),
    (('study', '--x=y', '--out=x', '--workdir=x'), 'No run below x'),
    ((*VIT, f'--out={DIGITS}'), 'is a file, not a folder'),
    ((*VIT, '--out=x', '--images=nowhere'), 'nowhere: no such folder'),
    ((*VIT, '--out=x', '--number=0'), 'use 1 or more'),
    ((*VIT, '--out=x'), 'comes without data: name a folder of images'),
    ((*VIT, '--out=x', '--tower=text'), 'sees images and nothing else'),
    (('filters', '--out=x', '--tower=text'), 'A text tower has no filters'),
    ((*VIT, '--out=x', '--texts=y'), '--texts needs --tower=text'),
    (
      (*VIT, '--out=x', '--tower=text', f'--images={TESTS}'),
      'is not for --tower=text',
    ),
    (
      (
        'features',
        f'--checkpoint={GOLDENS / "siglip.npz"}',
        '--out=x',
        '--tower=text',
        '--config.data.text.tokenizer=',
      ),
      'by SentencePiece',
    ),
  ],
)
def test_requests_that_cannot_work(arguments, message):
  with pytest.raises(config.ConfigError, match=message):
    call(*arguments)


def test_a_study_of_what_runs_do_not_have(runs):
  for x, message in (
    ('config.model.dept', "Did you mean 'depth'"),
    ('exaflop', "Did you mean 'exaflops'"),
  ):
    with pytest.raises(config.ConfigError, match=message):
      call('study', f'--workdir={runs}', f'--x={x}', '--out=x')


def test_help_names_every_question():
  text = call()
  assert all(f'  {what} ' in text for what in analyze.WHATS)


def test_compute_of_a_model_without_images():
  text = call('compute', '--config=configs/dalle.py:0.3b')
  assert 'parameters' in text


def test_words_and_numbers_are_all_words(tmp_path):
  for name, fsdp in (('a', None), ('b', 2)):
    (tmp_path / name).mkdir()
    said = json.dumps({'mesh': {'fsdp': fsdp}})
    (tmp_path / name / 'config.json').write_text(said)
    row = json.dumps({'step': 1, 'test/accuracy': 0.5})
    (tmp_path / name / 'metrics.jsonl').write_text(row)
  points = study.collect(tmp_path, 'config.mesh.fsdp', None, 'test/accuracy')
  assert [point.x for point in points] == ['2', 'None']


@pytest.mark.parametrize(
  'values,expected',
  [
    ((7e-7, 3e-6, 7e-6), {'700 GFLOP', '3 TFLOP', '7 TFLOP'}),
    # Too close to each other for a number each.
    ((7e-7, 3e-6, 3.1e-6, 7e-6), {'1 TFLOP', '2 TFLOP', '5 TFLOP'}),
  ],
)
def test_compute_is_drawn_in_units_that_can_be_read(values, expected):
  points = [study.Point('run', 'a', x, 0.5, 1) for x in values]
  figure = study.draw(points, 'exaflops', 'test/accuracy')
  figure.draw_without_rendering()
  (axes,) = figure.axes
  low, high = axes.get_xlim()
  shown = {
    tick.label1.get_text()
    for tick in axes.xaxis.get_major_ticks()
    if low <= tick.get_loc() <= high
  }
  assert shown == expected
