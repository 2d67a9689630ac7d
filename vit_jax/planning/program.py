"""What a TPU would do in one call of a compiled program, read from its text.

The compiler's own totals count the body of a loop once. Here the optimized
HLO (`compiled.as_text()`) is walked from its entry, and a body counts as often
as it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_INSTRUCTION = re.compile(
  r'\s*(?P<root>ROOT )?%(?P<name>[\w.-]+) = (?P<type>.*?)'
  r' (?P<operation>[a-z][a-z0-9-]*)\((?P<rest>.*)'
)
_ARRAY = re.compile(
  r'(?P<dtype>[a-z][a-z0-9]*)\[(?P<shape>[0-9,]*)\]'
  r'(?:\{(?P<order>[0-9,]*)(?::(?P<place>[^}]*))?\})?'
)
_COLLECTIVE = re.compile(
  'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute'
)
# Neither reads nor writes an array.
_NO_TRAFFIC = {
  'bitcast', 'call', 'conditional', 'constant', 'get-tuple-element',
  'parameter', 'partition-id', 'replica-id', 'tuple', 'while',
}  # fmt: skip
# What runs another computation once, and the attribute that names it.
_CALLS = {'call': 'to_apply', 'async-start': 'calls'}
_BRANCHES = ('true', 'false')
# The head of an argument's path, such as state.params or batch['image'].
_ARGUMENT = re.compile(r'op_name="(\w+)\W+(\w+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One operation of a computation, as far as it matters here."""

  name: str
  operation: str
  type: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """Returns the computation that an attribute names, if there is one."""
    match = re.search(rf'\b{name}=%([\w.-]+)', self.attributes)
    return match and match[1]

  @property
  def branches(self) -> list[str]:
    """The computations one of which a conditional runs."""
    several = re.search(r'\bbranch_computations=\{([^}]*)\}', self.attributes)
    if several:
      return re.findall(r'%([\w.-]+)', several[1])
    return [self.attribute(f'{which}_computation') for which in _BRANCHES]

  @property
  def cycles(self) -> int:
    """The compiler's estimate; 0 where it has none."""
    match = re.search(r'"estimated_cycles":"([0-9]+)"', self.attributes)
    return int(match[1]) if match else 0


@dataclasses.dataclass
class Traffic:
  """Collectives of one kind, or other traffic: how often, and how much."""

  count: int = 0
  bytes: int = 0


@dataclasses.dataclass
class Program:
  """What one device does in one call.

  Attributes:
    cycles: of its core; collectives and a few plain operations carry no
      estimate.
    hbm_bytes: read from and written to its memory.
    collectives: by kind; bytes are of the whole arrays, before they are
      scattered or after they were gathered.
    loops: `while` operations in the text.
    arguments: bytes, tiles filled up, by the path of the argument's head,
      such as 'state.params'.
  """

  cycles: int = 0
  hbm_bytes: int = 0
  collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
  loops: int = 0
  arguments: dict[str, int] = dataclasses.field(default_factory=dict)


def bytes_of(text: str, everywhere: bool = True) -> int:
  """Returns the bytes of a type such as '(f32[8,3]{1,0:T(8,128)}, s32[])'.

  Args:
    text: of an array or a tuple of arrays.
    everywhere: whether to count arrays in a core's own memory as well.
  """
  total = 0
  for array in _ARRAY.finditer(text):
    bits = re.search('[0-9]+', array['dtype'])
    if not bits and array['dtype'] != 'pred':
      continue  # Tokens and the like.
    place = array['place'] or ''
    if 'S(' in place and not everywhere:
      continue
    sizes = [int(size) for size in array['shape'].split(',') if size]
    tile = re.match(r'T\(([0-9,]+)\)', place)
    if tile:
      order = [int(axis) for axis in array['order'].split(',') if axis]
      sizes = [sizes[axis] for axis in reversed(order)]
      sizes = _filled(sizes, [int(size) for size in tile[1].split(',')])
    total += math.prod(sizes) * (int(bits[0]) if bits else 8) // 8
  return total


def _filled(sizes: list[int], tile: list[int]) -> list[int]:
  """Returns sizes, the outermost first, rounded up to whole tiles."""
  sizes = [1] * (len(tile) - len(sizes)) + sizes
  outer = len(sizes) - len(tile)
  inner = [-(-size // unit) * unit for size, unit in zip(sizes[outer:], tile)]
  return sizes[:outer] + inner


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Returns instructions by computation, and the name of the entry."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%([\w.-]+) \(.*\{$', line)
    if head:
      current = computations[head[2]] = []
      entry = head[2] if head[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      operands, _, attributes = match['rest'].partition(')')
      if match['operation'] in ('parameter', 'constant'):
        operands = '%' + operands  # A number, or a value.
      current.append(
        Instruction(
          match['name'],
          match['operation'],
          match['type'],
          tuple(re.findall(r'%([\w.-]+)', operands)),
          attributes,
          bool(match['root']),
        )
      )
  return computations, entry


def read(text: str) -> Program:
  """Reads the optimized HLO of a program for TPU."""
  computations, entry = _computations(text)
  program = Program()
  for instruction in computations[entry]:
    if instruction.operation == 'parameter':
      match = _ARGUMENT.search(instruction.attributes)
      name = f'{match[1]}.{match[2]}' if match else 'others'
      size = bytes_of(instruction.type)
      program.arguments[name] = program.arguments.get(name, 0) + size
  for times, instruction, types in _executed(computations, entry, 1):
    program.cycles += times * instruction.cycles
    program.loops += instruction.operation == 'while'
    kind = _collective(instruction)
    if kind:
      traffic = program.collectives.setdefault(kind, Traffic())
      traffic.count += times
      traffic.bytes += times * _whole_bytes(instruction, types)
    program.hbm_bytes += times * _hbm_bytes(instruction, types, computations)
  return program


def _executed(
  computations: dict[str, list[Instruction]], name: str, times: int
) -> Iterator[tuple[int, Instruction, dict[str, str]]]:
  """Yields how often each instruction runs, and the types beside it.

  Of several branches the one with the most cycles runs.
  """
  types = {each.name: each.type for each in computations[name]}
  for instruction in computations[name]:
    yield times, instruction, types
    if instruction.operation == 'while':
      count = _trip_count(instruction, computations)
      body = instruction.attribute('body')
      yield from _executed(computations, body, times * count)
    elif instruction.operation in _CALLS:
      called = instruction.attribute(_CALLS[instruction.operation])
      yield from _executed(computations, called, times)
    elif instruction.operation == 'conditional':
      branches = [
        [*_executed(computations, branch, times)]
        for branch in instruction.branches
      ]
      yield from max(branches, key=_cycles)


def _cycles(executed: list[tuple[int, Instruction, dict[str, str]]]) -> int:
  return sum(times * instruction.cycles for times, instruction, _ in executed)


def _trip_count(
  loop: Instruction, computations: dict[str, list[Instruction]]
) -> int:
  """Returns how often a loop runs that counts up from 0; 1 if not known."""
  known = re.search(r'"known_trip_count":\{"n":"([0-9]+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = computations[loop.attribute('condition')]
  by_name = {each.name: each for each in condition}
  root = next(each for each in condition if each.is_root)
  if root.operation == 'compare' and 'direction=LT' in root.attributes:
    limit = by_name[root.operands[-1]]
    if limit.operation == 'constant':
      return int(limit.operands[0])
  return 1


def _collective(instruction: Instruction) -> str | None:
  """Returns the kind of a collective; None for everything else."""
  operation = instruction.operation
  if operation == 'fusion' and 'all-reduce-scatter' in instruction.name:
    return 'reduce-scatter'
  if operation.endswith('-done'):
    return None
  match = _COLLECTIVE.match(operation)
  return match and match[0]


def _whole_bytes(instruction: Instruction, types: dict[str, str]) -> int:
  """Returns the bytes of what a collective gathers, sums or scatters."""
  given = sum(bytes_of(types.get(name, '')) for name in instruction.operands)
  result = bytes_of(instruction.type)
  if instruction.operation.endswith('-start'):
    result -= given  # Its result is a pair of what is given and what comes.
  return max(given, result)


def _hbm_bytes(
  instruction: Instruction,
  types: dict[str, str],
  computations: dict[str, list[Instruction]],
) -> int:
  """Returns what an instruction reads from and writes to memory."""
  operation = instruction.operation
  if operation in _NO_TRAFFIC or operation.endswith('-done'):
    return 0
  read = [bytes_of(types.get(name, ''), False) for name in instruction.operands]
  written = bytes_of(instruction.type, False)
  if operation.endswith('-start'):
    return sum(read)
  if operation in ('dynamic-slice', 'slice', 'gather'):
    return 2 * written
  if operation == 'dynamic-update-slice':
    return 2 * read[1]
  if operation == 'fusion':
    fused = computations[instruction.attribute('calls')]
    return _fused_bytes(fused, read, written)
  return sum(read) + written


def _fused_bytes(
  fused: list[Instruction], read: list[int], written: int
) -> int:
  """Corrects the traffic of a fusion for arrays it touches only parts of."""
  inside = {each.name: each for each in fused}
  for each in fused:
    if each.operation != 'parameter':
      continue
    users = [user for user in fused if each.name in user.operands]
    number = int(each.operands[0])
    if users and all(user.operation == 'dynamic-slice' for user in users):
      part = sum(bytes_of(user.type) for user in users)
      read[number] = min(read[number], part)
    elif users and all(
      user.operation == 'dynamic-update-slice' and user.operands[0] == each.name
      for user in users
    ):
      updates = sum(bytes_of(inside[user.operands[1]].type) for user in users)
      written = max(0, written - read[number]) + updates
      read[number] = 0
  return sum(read) + written
