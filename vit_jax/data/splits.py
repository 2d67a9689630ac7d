"""Split expressions such as 'train[:99%]' and 'train[10%:]+test[100:200]'.

The grammar and the rounding are those of TensorFlow Datasets
(https://www.tensorflow.org/datasets/splits), so that a split means the same
examples whatever the source behind it.
"""

import dataclasses
import difflib
import re

_PART = re.compile(
  r'(?P<name>[\w.-]+)'
  r'(?P<slice>\[(?P<start>-?[\d.]*%?):(?P<stop>-?[\d.]*%?)\])?'
)
_BOUND = re.compile(r'-?\d+|-?\d+(\.\d+)?%')
_GRAMMAR = (
  "a split is written 'train', 'train[:10%]', 'train[90%:]', "
  "'train[100:200]', or several joined with '+'"
)


@dataclasses.dataclass(frozen=True)
class Part:
  """One term of a split expression.

  Attributes:
    name: Name of the whole split, such as 'train'.
    start: First example, as '100', '-100' or '10%'; '' is the beginning.
    stop: End (exclusive), written alike; '' is the end of the split.
  """

  name: str
  start: str = ''
  stop: str = ''

  def resolve(self, length: int) -> range:
    """Returns the examples meant by this part of a split of `length`."""
    indices = range(
      _position(self.start, length, 0), _position(self.stop, length, length)
    )
    if not indices:
      raise ValueError(
        f'{self} selects no example: the split {self.name!r} has {length}'
      )
    return indices

  def __str__(self) -> str:
    if self.start or self.stop:
      return f'{self.name}[{self.start}:{self.stop}]'
    return self.name


def parse_split(text: str) -> tuple[Part, ...]:
  """Parses a split expression.

  Args:
    text: Split expression, such as 'train[:99%]+test'.

  Returns:
    The parts, in the order written.

  Raises:
    ValueError: If the expression does not follow the grammar.
  """
  parts = []
  for term in text.split('+'):
    match = _PART.fullmatch(term.strip())
    if not match:
      raise ValueError(f'bad split {text!r}: {_GRAMMAR}')
    bounds = [match['start'] or '', match['stop'] or '']
    given = [bound for bound in bounds if bound]
    if match['slice'] and not (
      given and all(_BOUND.fullmatch(bound) for bound in given)
    ):
      raise ValueError(f'bad slice in split {text!r}: {_GRAMMAR}')
    if len({bound.endswith('%') for bound in given}) > 1:
      raise ValueError(
        f'split {text!r} mixes percent and examples in one slice; write both '
        'bounds in the same unit'
      )
    parts.append(Part(match['name'], *bounds))
  return tuple(parts)


def unknown_split(name: str, available: list[str], where: str) -> ValueError:
  """Returns the error for a split that a source does not have."""
  near = difflib.get_close_matches(name, available, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  return ValueError(
    f'{where} has no split {name!r}: it has {", ".join(available)}{hint}'
  )


def _position(bound: str, length: int, default: int) -> int:
  """Returns the example index that a bound of a split of `length` means."""
  if not bound:
    return default
  if bound.endswith('%'):
    percent = float(bound[:-1])
    if abs(percent) > 100:
      raise ValueError(f'{bound} is beyond 100% of a split')
    # `round` takes exact halves to the even number, as TFDS does.
    position = round(percent * length / 100)
  else:
    position = int(bound)
    if abs(position) > length:
      raise ValueError(
        f'{bound} is beyond the end of a split of {length} examples'
      )
  return position + length if bound.startswith('-') else position
