"""The pictures of a run: drawn of what there is, and telling the truth."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vit_jax.tasks import classification_report
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import report

CURVES = {'loss', 'accuracy', 'learning_rate', 'speed'}


def trained_row(step, loss):
  return {
    'step': step,
    'train/loss': loss,
    'train/accuracy': 0.5,
    'train/learning_rate': 1e-3,
    'speed/images_per_sec': 100.0,
    'speed/data_wait': 0.0,
  }


def evaluated_row(step, accuracy):
  return {'step': step, 'test/loss': 1.0, 'test/accuracy': accuracy}


def left_by(workdir, rows, **task):
  """Returns the names of the pictures that a run of such rows leaves."""
  (workdir / 'config.json').write_text(json.dumps({'task': task}))
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (workdir / 'metrics.jsonl').write_text(text)
  return check(workdir, report.write(workdir))


def check(workdir, files):
  """Opens pictures; returns their names."""
  for file in files:
    assert file.parent == workdir / 'report'
    pixels = np.asarray(Image.open(file).convert('L'))
    assert pixels.std() > 1  # Something is drawn.
  return {file.stem for file in files}


NOISE = np.random.default_rng(0).uniform(0, 1, 500)
RUNS = {
  'nothing': ([], set()),
  'one row': ([trained_row(1, 2.0)], CURVES),
  'only tests': ([evaluated_row(3, 0.4)], {'loss', 'accuracy'}),
  'many rows': (
    [trained_row(i + 1, x) for i, x in enumerate(NOISE)]
    + [evaluated_row(100, 0.9), evaluated_row(500, 0.8)],
    CURVES,
  ),
  'what a task has': (
    [{'step': 1, 'train/feature_variance': 0.0, 'test/feature_variance': 0.0}],
    {'feature_variance'},
  ),
  'not a number': (
    [trained_row(1, 2.0), trained_row(2, float('nan'))],
    CURVES,
  ),
}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('rows,expected', RUNS.values(), ids=RUNS)
def test_curves_are_drawn_of_what_there_is(tmp_path, rows, expected):
  assert left_by(tmp_path, rows, mixup=0.2) == expected


def predict(variables, image):
  """Says the class and the certainty that are painted in an image."""
  said = image[:, 0, 0, 0].astype(jnp.int32)
  sure = image[:, 0, 1, :1]
  rest = (1 - sure) / (variables['classes'] - 1)
  return jnp.where(jax.nn.one_hot(said, 4) > 0, sure, rest)


def painted(labels, said, sure, mask=None):
  """Returns a batch whose predictions are known."""
  image = np.zeros((len(labels), 2, 2, 1), np.float32)
  image[:, 0, 0, 0], image[:, 0, 1, 0] = said, sure
  if mask is None:
    mask = np.ones(len(labels))
  return {
    'image': image,
    'label': np.array(labels, np.int32),
    'mask': np.array(mask, np.float32),
  }


BATCHES = [
  painted(
    labels=[0, 0, 1, 1, 2, 2, 3, 3],
    said=[0, 1, 1, 1, 0, 2, 3, 0],
    sure=[0.9, 0.6, 0.9, 0.8, 0.7, 0.6, 0.5, 0.99],
  ),
  # The padding is wrong, sure of it, and out of range.
  painted(
    labels=[0, 3, 0, 0, 0, 0, 0, 0],
    said=[1, 3, 9, 9, 9, 9, 9, 9],
    sure=[0.95, 0.5, 1, 1, 1, 1, 1, 1],
    mask=[1, 1, 0, 0, 0, 0, 0, 0],
  ),
]
VARIABLES = {'classes': 4}
NAMES = ['ant', 'bee', 'a very long-winded name of a cat, cat', 'dog']


@pytest.mark.parametrize('devices', [1, 8])
def test_predictions_count_each_example_once(devices):
  mesh = mesh_lib.make(mesh_lib.Settings(), jax.devices()[:devices])
  with jax.set_mesh(mesh):
    found = classification_report.collect(
      predict, VARIABLES, (mesh_lib.to_mesh(b, mesh) for b in BATCHES)
    )
  counts = classification_report.confusion_matrix(
    found.label, found.prediction, np.arange(4)
  )
  np.testing.assert_array_equal(
    counts,
    [[1, 2, 0, 0, 0], [0, 2, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 2, 0]],
  )
  worst = [(m.label, m.prediction, m.confidence) for m in found.mistakes]
  expected = [(3, 0, 0.99), (0, 1, 0.95), (2, 0, 0.7), (0, 1, 0.6)]
  np.testing.assert_allclose(worst, expected, rtol=1e-6)
  np.testing.assert_array_equal(found.mistakes[0].image, BATCHES[0]['image'][7])
  assert found.value_range == (0, 3)


def test_only_the_surest_mistakes_are_kept():
  sure = np.random.default_rng(0).permutation(np.linspace(0.5, 0.9, 96))
  batches = [painted([0] * 32, [1] * 32, part) for part in np.split(sure, 3)]
  found = classification_report.collect(predict, VARIABLES, batches)
  kept = [mistake.confidence for mistake in found.mistakes]
  np.testing.assert_allclose(kept, np.sort(sure)[:-25:-1], rtol=1e-6)
  assert len(found.label) == 96


def test_of_many_classes_the_most_confused_are_shown():
  label, prediction = np.arange(1000), np.arange(1000)
  # 20 pairs; the later, the more often: 15 of them fit.
  for pair in range(20):
    label = np.append(label, [50 * pair] * (pair + 1))
    prediction = np.append(prediction, [50 * pair + 1] * (pair + 1))
  chosen = classification_report.confused_classes(label, prediction, 1000)
  expected = [50 * pair + i for pair in range(5, 20) for i in (0, 1)]
  assert chosen.tolist() == expected
  elsewhere = np.append(prediction, 7)
  counts = classification_report.confusion_matrix(
    np.append(label, 950), elsewhere, chosen
  )
  assert counts[28, 28:].tolist() == [1, 20, 1]
  assert counts.sum() == 30 + sum(range(6, 21)) + 1


class Classifier:
  """A task that has pictures, of given predictions."""

  def __init__(self, class_names):
    self.class_names = class_names

  def pictures(self, variables, batches):
    found = classification_report.collect(predict, variables, batches)
    for name, draw in classification_report.PICTURES.items():
      yield name, draw(found, self.class_names)


PERFECT = [painted([0, 1], [0, 1], [0.9, 0.8])]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('batches', [BATCHES, PERFECT])
@pytest.mark.parametrize('names', [NAMES, NAMES * 250])
def test_a_classifier_leaves_its_mistakes(tmp_path, batches, names):
  files = report.write_examples(tmp_path, Classifier(names), VARIABLES, batches)
  assert check(tmp_path, files) == {'mistakes', 'confusion'}


class Learner:
  """A task of which some is worth looking at while it is learned."""

  sheets = ('first', 'second')

  def pictures(self, variables, batches):
    for name in ('first', 'second', 'whole'):
      next(batches)
      figure = Figure()
      figure.subplots().set_title(variables)
      yield name, figure


def test_sheets_are_kept_and_nothing_else_is_read(tmp_path):
  folder, unread = tmp_path / 'report', iter(range(3))
  given = tmp_path, Learner()
  report.write_examples(*given, 'a', unread, step=600, only_sheets=True)
  assert next(unread) == 2  # Not read for 'whole'.
  report.write_examples(*given, 'b', iter(range(2)), only_sheets=True)
  report.write_examples(*given, 'c', iter(range(3)), step=1000)
  names = {str(path.relative_to(folder)) for path in folder.rglob('*.png')}
  kept = [
    f'{name}/{step:08}' for name in Learner.sheets for step in (600, 1000)
  ]
  assert names == {f'{x}.png' for x in ('first', 'second', 'whole', *kept)}
  last, before = (report.kept(tmp_path, 'first', x) for x in (1000, 600))
  assert (folder / 'first.png').read_bytes() == last.read_bytes()
  assert before.read_bytes() != last.read_bytes()


def test_a_run_that_goes_on_has_no_report_of_later(tmp_path):
  report.write_examples(tmp_path, Learner(), '', iter(range(3)), step=600)
  report.write_examples(tmp_path, Learner(), '', iter(range(3)), step=1200)
  assert not report.is_complete(tmp_path)
  left_by(tmp_path, [trained_row(1200, 2.0)])
  assert report.is_complete(tmp_path)
  report.go_back(tmp_path, 600)
  assert not report.is_complete(tmp_path)
  kept = [report.kept(tmp_path, 'first', step) for step in (600, 1200)]
  assert [path.exists() for path in kept] == [True, False]
  assert (tmp_path / 'report' / 'first.png').exists()


@pytest.mark.parametrize(
  'evaluated, total, every',
  [(600, 1800, 600), (100, 5_000, 100), (100, 5_100, 200), (7, 7_000, 140),
   (50, 20, 50)],
)  # fmt: skip
def test_of_many_evaluations_few_sheets_are_kept(evaluated, total, every):
  assert report.kept_every(evaluated, total) == every


def test_a_task_without_pictures_reads_nothing(tmp_path):
  unread = iter(BATCHES)
  assert report.write_examples(tmp_path, object(), VARIABLES, unread) == []
  assert next(unread) is BATCHES[0]
