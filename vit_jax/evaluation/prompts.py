"""What classes are called, and the sentences that their names are put in.

A classifier that is made of texts is only as good as these: names that people
use, in sentences such as captions are, gain about 5 % on ImageNet over bare
names (Radford et al., arXiv:2103.00020, section 3.1.4).
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from vit_jax.config import ConfigError, did_you_mean

_PACKAGED = resources.files('vit_jax.data') / 'prompts'
_EXAMPLE = '{"names": ["cat", "dog"], "templates": ["a photo of a {}."]}'


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Names of classes, and templates for all of them.

  Attributes:
    names: of each class, by label; one or several that mean the same.
    templates: sentences in which '{}' stands for a name.
  """

  names: tuple[tuple[str, ...], ...]
  templates: tuple[str, ...] = ('{}',)

  def texts(self, label: int) -> list[str]:
    """Returns the sentences about one class."""
    return [
      # Not format(): a name, or the rest of a template, may have braces.
      template.replace('{}', name)
      for name in self.names[label]
      for template in self.templates
    ]


def known() -> tuple[str, ...]:
  """Returns the names of the prompts that come with the package."""
  files = (entry.name for entry in _PACKAGED.iterdir())
  return tuple(sorted(x[:-5] for x in files if x.endswith('.json')))


def load(name: str) -> Prompts:
  """Reads prompts.

  Args:
    name: one of `known`, or a JSON file with `names`: a list, or the file
      beside it that holds them one a line; and `templates`. A name may itself
      be a list, of synonyms.

  Raises:
    ConfigError: it is neither, or its content cannot be used.
  """
  path = _PACKAGED / f'{name}.json' if name in known() else pathlib.Path(name)
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise ConfigError(
      f'{name!r} is neither a file nor prompts that we ship.'
      f'{did_you_mean(name, known())}'
    ) from error
  except (OSError, ValueError) as error:
    raise ConfigError(f'Prompts cannot be read from {name}: {error}') from error
  keys = ('names', 'templates')
  if not isinstance(content, dict) or sorted(content) != sorted(keys):
    raise ConfigError(
      f'{name} has to hold names and templates and no more, such as {_EXAMPLE}'
    )
  names = content['names']
  if isinstance(names, str):
    names = _lines(path.parent / names, name)
  if isinstance(names, list):
    names = [[one] if isinstance(one, str) else one for one in names]
  _check(name, names, content['templates'])
  return Prompts(tuple(map(tuple, names)), tuple(content['templates']))


def from_names(names: Sequence[str], templates: Sequence[str]) -> Prompts:
  """Makes prompts, such as of the class names that come with some data.

  Raises:
    ConfigError: they cannot be used.
  """
  names, templates = [[name] for name in names], list(templates)
  _check('The prompts', names, templates)
  return Prompts(tuple(map(tuple, names)), tuple(templates))


def _lines(path: Any, where: str) -> list[str]:
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f'Names of {where} cannot be read: {error}') from error
  return [line.strip() for line in text.splitlines() if line.strip()]


def _check(where: str, names: Any, templates: Any) -> None:
  """Raises ConfigError for names and templates that no text can be made of."""
  for kind, lists in (('names', names), ('templates', [templates])):
    if not (isinstance(lists, list) and lists and all(map(_are_texts, lists))):
      raise ConfigError(
        f'{where}: {kind} are texts, one or more and none empty; an example: '
        f'{_EXAMPLE}'
      )
  for template in templates:
    if template.count('{}') != 1:
      raise ConfigError(
        f"{where}: the template {template!r} needs '{{}}' once, where the "
        "name goes, as in 'a photo of a {}.'"
      )


def _are_texts(given: Any) -> bool:
  if not (isinstance(given, list) and given):
    return False
  return all(isinstance(text, str) and text.strip() for text in given)


def ordered(prompts: Prompts, class_names: Sequence[str]) -> Prompts:
  """Puts the names in the order of the classes of some data.

  Where both call all classes the same, but for case and punctuation, that
  decides. Else names belong to classes by their place, as where the data has
  numbers or WordNet ids; but not if most names that occur in both are at
  different places.

  Args:
    prompts: with a name for each class.
    class_names: of the data, by label.

  Raises:
    ConfigError: there are more or fewer, or they contradict each other.
  """
  if len(prompts.names) != len(class_names):
    raise ConfigError(
      f'There are prompts for {len(prompts.names)} classes, but the data has '
      f'{len(class_names)}: {", ".join(class_names[:5])}, ...'
    )
  data = [_plain(name) for name in class_names]
  ours = [[_plain(name) for name in names] for names in prompts.names]
  # The first of each: some names occur twice.
  place = {
    name: i for i, names in reversed([*enumerate(ours)]) for name in names
  }
  if len({place.get(name) for name in data} - {None}) == len(data):
    names = tuple(prompts.names[place[name]] for name in data)
    return dataclasses.replace(prompts, names=names)
  same = sum(name in names for name, names in zip(data, ours))
  elsewhere = [
    label
    for label, name in enumerate(data)
    if name in place and name not in ours[label]
  ]
  if len(elsewhere) > same:
    label = elsewhere[0]
    raise ConfigError(
      f'The prompts are in another order than the classes: class {label} of '
      f'the data is {class_names[label]!r}, which the prompts have in place '
      f'{place[data[label]]}. Write them in the order of the data, see '
      'vit_jax/data/prompts/README.md.'
    )
  return prompts


def _plain(name: str) -> str:
  return ''.join(x for x in name.lower() if x.isalnum())
