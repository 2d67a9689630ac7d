"""Prompts that we ship are OpenAI's, and mistakes in others are explained."""

import json

import pytest

from vit_jax.config import ConfigError
from vit_jax.evaluation import prompts


def written(path, **content):
  path.write_text(json.dumps(content))
  return str(path)


@pytest.mark.parametrize(
  'name, classes, templates',
  [
    ('imagenet', 1000, 80),
    ('imagenet_7', 1000, 7),
    ('cifar10', 10, 18),
    ('ucf101', 101, 48),
    ('kinetics700', 700, 28),
    ('eurosat', 10, 3),
  ],
)
def test_sizes_are_those_of_the_paper(name, classes, templates):
  loaded = prompts.load(name)
  assert len(loaded.names) == classes
  assert len(set(loaded.templates)) == templates


def test_all_that_come_with_the_package_can_be_read():
  assert len(prompts.known()) == 28
  for name in prompts.known():
    loaded = prompts.load(name)
    texts = loaded.texts(len(loaded.names) - 1)
    assert all('{}' not in text for text in texts)
  seven, all_80 = prompts.load('imagenet_7'), prompts.load('imagenet')
  assert set(seven.templates) < set(all_80.templates)
  assert seven.names == all_80.names
  assert all_80.names[3] == ('tiger shark',)
  assert 'itap of a tiger shark.' in seven.texts(3)


def test_a_file_of_ones_own_with_synonyms_and_names_in_another_file(tmp_path):
  path = written(
    tmp_path / 'a.json',
    names=['cat', ['dog', '{hound}']],
    templates=['a {}.', '{"{}"}'],
  )
  loaded = prompts.load(path)
  assert loaded.texts(1) == [
    'a dog.',
    '{"dog"}',
    'a {hound}.',
    '{"{hound}"}',
  ]
  (tmp_path / 'names.txt').write_text('cat\ndog\n\n')
  beside = written(tmp_path / 'b.json', names='names.txt', templates=['{}'])
  assert prompts.load(beside) == prompts.from_names(['cat', 'dog'], ['{}'])


@pytest.mark.parametrize(
  'content, message',
  [
    (dict(names=['cat']), 'names and templates and no more'),
    (dict(classes=['cat'], templates=['{}']), 'names and templates and no'),
    (dict(names=[], templates=['{}']), 'names are texts'),
    (dict(names=['cat', ' '], templates=['{}']), 'names are texts'),
    (dict(names=[['cat', 3]], templates=['{}']), 'names are texts'),
    (dict(names={'cat': 1}, templates=['{}']), 'names are texts'),
    (dict(names=['cat'], templates=[]), 'templates are texts'),
    (dict(names=['cat'], templates='a {}'), 'templates are texts'),
    (dict(names=['cat'], templates=['a cat']), "'a cat' needs '{}' once"),
    (dict(names=['cat'], templates=['{} {}']), "'{} {}' needs '{}' once"),
    (dict(names='absent.txt', templates=['{}']), 'Names of .* cannot be read'),
  ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
  with pytest.raises(ConfigError, match=message):
    prompts.load(written(tmp_path / 'a.json', **content))


def test_what_is_no_prompts_at_all(tmp_path):
  with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
    prompts.load('imagnet')
  (tmp_path / 'a.json').write_text('{')
  with pytest.raises(ConfigError, match='cannot be read'):
    prompts.load(str(tmp_path / 'a.json'))
  with pytest.raises(ConfigError, match='cannot be read'):
    prompts.load(str(tmp_path))


def test_names_go_to_the_classes_of_the_data():
  of = prompts.from_names
  given = of(['sea lake', 'Forest', 'river'], ['{}'])
  # All names are the same: they decide.
  names = prompts.ordered(given, ['Forest', 'River', 'SeaLake']).names
  assert names == (('Forest',), ('river',), ('sea lake',))
  # None is: the place does.
  assert prompts.ordered(given, ['n01', 'n02', 'n03']) == given
  # One that is elsewhere is a coincidence beside two that agree.
  given = of(['missile', 'tench', 'goldfish'], ['{}'])
  assert prompts.ordered(given, ['tench', 'tench', 'goldfish']) == given
  with pytest.raises(ConfigError, match="class 1 of the data is 'Forest'"):
    eurosat = ['AnnualCrop', 'Forest', 'HerbaceousVegetation', 'Highway']
    eurosat += ['Industrial', 'Pasture', 'PermanentCrop', 'Residential']
    prompts.ordered(prompts.load('eurosat'), [*eurosat, 'River', 'SeaLake'])
  with pytest.raises(ConfigError, match='for 3 classes, but the data has 2'):
    prompts.ordered(given, ['tench', 'missile'])


def test_imagenet_is_in_the_order_of_its_own_names_twice_used_or_not():
  names = prompts.load('imagenet')
  as_texts = [one for (one,) in names.names]
  assert prompts.ordered(names, as_texts) == names
