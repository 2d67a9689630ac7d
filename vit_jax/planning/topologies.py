"""TPUs by the names they are rented under, and what their data sheets say."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from jax.experimental import topologies

from vit_jax.config import ConfigError, did_you_mean
from vit_jax.training import memory
from vit_jax.training.flops import PEAK_FLOPS

# In the environment, for a compiler that finds no TPU: do not look for one on
# the network, share the library with other processes, and log only errors.
_ENVIRONMENT = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v3-8',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}


@dataclasses.dataclass(frozen=True)
class Kind:
  """A generation of TPUs.

  Attributes:
    device_kind: JAX's name of it.
    compiler_name: the compiler's.
    cores: of a chip.
    is_core: whether a device of JAX is one core; else it is a whole chip.
    hbm_gb_per_s: of a chip.
    links_gb_per_s: of a chip to all its neighbours, in one direction.
    clock_mhz: of a core; None where it is not published.
    options: that the compiler needs to see the chips as they are rented.
  """

  device_kind: str
  compiler_name: str
  cores: int
  is_core: bool
  hbm_gb_per_s: float
  links_gb_per_s: float
  clock_mhz: float | None
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def devices_a_chip(self) -> int:
    """Devices of JAX on one chip."""
    return self.cores if self.is_core else 1

  @property
  def hbm_gib(self) -> float:
    """Memory of a device that programs can have."""
    return memory.GIB[self.device_kind]

  @property
  def peak_flops(self) -> float:
    """bf16 FLOP/s of a device."""
    return PEAK_FLOPS[self.device_kind]

  @property
  def hbm_bytes_per_s(self) -> float:
    """Bytes a second that a device can move to and from its memory."""
    return self.hbm_gb_per_s * 1e9 / self.devices_a_chip

  @property
  def links_bytes_per_s(self) -> float:
    """Bytes a second that a device can send to others."""
    return self.links_gb_per_s * 1e9 / self.devices_a_chip


# Memory bandwidth: cloud.google.com/tpu/docs, a page a generation. Links: the
# same pages, all-reduce bandwidth of a pod over its chips (v3 to v6e; v5p: half
# of the bidirectional one); v2 has 4 links of 496 Gbit/s (Jouppi et al., "A
# domain-specific supercomputer for training deep neural networks", 2020).
# Clock: the same article, and for v4 to v5p what the peak and the number of
# 128 x 128 matrix units make it.
_MEGACORE = (('chip_config_name', 'megacore'),)
KINDS = {
  'v2': Kind('TPU v2', 'v2', 2, True, 700, 248, 700),
  'v3': Kind('TPU v3', 'v3', 2, True, 900, 332, 940),
  'v4': Kind('TPU v4', 'v4', 2, False, 1200, 269, 1050, _MEGACORE),
  'v5litepod': Kind('TPU v5 lite', 'v5e', 1, False, 819, 200, 1500),
  'v5p': Kind('TPU v5', 'v5p', 2, False, 2765, 600, 1750),
  'v6e': Kind('TPU v6 lite', 'v6e', 1, False, 1638, 400, None),
}

# How the chips of a slice are wired, by their number.
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16', '16x32')
_DEEP = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8')
_PODS = {
  'v2': ('2x2', *_FLAT[3:8]),
  'v3': ('2x2', *_FLAT[3:], '32x32'),
  'v4': (*_DEEP, '8x8x8'),
  'v5litepod': _FLAT[:8],
  'v5p': (*_DEEP, '8x8x8'),
  'v6e': _FLAT[:8],
}
_CHIPS_A_HOST = 4
# These are also rented as one host with all of its chips.
_ONE_HOST = {'v5litepod': 8, 'v6e': 8}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Some TPUs that are rented together.

  Attributes:
    name: what they are rented as, such as 'v3-8'.
    layout: chips along each axis, such as (2, 2).
  """

  name: str
  kind: Kind
  layout: tuple[int, ...]

  @property
  def chips(self) -> int:
    """Number of chips."""
    return math.prod(self.layout)

  @property
  def hosts(self) -> int:
    """Number of machines, each with a process of its own."""
    whole = _ONE_HOST.get(self.name.partition('-')[0], _CHIPS_A_HOST)
    return 1 if self.chips <= whole else self.chips // _CHIPS_A_HOST

  @property
  def size(self) -> int:
    """Number of devices of JAX."""
    return self.chips * self.kind.devices_a_chip

  @property
  def device(self) -> str:
    """What one device of JAX is."""
    return 'core' if self.kind.is_core else 'chip'

  def __str__(self) -> str:
    layout = ' x '.join(map(str, self.layout))
    cores = self.chips * self.kind.cores
    return (
      f'{self.name}: {_count(self.chips, "chip")} ({layout}), '
      f'{_count(cores, "core")}, {_count(self.hosts, "host")}; JAX sees '
      f'{_count(self.size, self.device)} of {self.kind.hbm_gib:g} GiB'
    )


def _count(number: int, what: str) -> str:
  return f'{number:,} {what}{"s" * (number != 1)}'


def _named() -> dict[str, Topology]:
  """Returns every topology by its name."""
  result = {}
  for prefix, layouts in _PODS.items():
    kind = KINDS[prefix]
    for layout in layouts:
      sizes = tuple(map(int, layout.split('x')))
      # Names count cores, but chips where a chip has one core.
      name = f'{prefix}-{math.prod(sizes) * kind.cores}'
      result[name] = Topology(name, kind, sizes)
  return result


TOPOLOGIES = _named()


def parse(name: str) -> Topology:
  """Returns the TPUs of a name such as 'v3-8', 'v5litepod-16' or 'v5e-16'.

  Raises:
    ConfigError: there is no such TPU.
  """
  full = name.replace('v5e-', 'v5litepod-')
  if full in TOPOLOGIES:
    return TOPOLOGIES[full]
  prefix, _, size = full.partition('-')
  if prefix in KINDS and size.isdecimal():
    sizes = [known for known in TOPOLOGIES if known.startswith(f'{prefix}-')]
    raise ConfigError(f'There is no {name}; there are {", ".join(sizes)}.')
  examples = [f'{prefix}-8' for prefix in KINDS]
  raise ConfigError(
    f'{name!r} is not a TPU topology.{did_you_mean(full, examples)}, and other '
    'sizes.'
  )


def devices(topology: Topology) -> list[Any]:
  """Returns devices to compile for; nothing can run on them.

  Raises:
    ConfigError: the TPU compiler is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ConfigError(
      'The TPU compiler (libtpu) is not installed. It needs no TPU, but Linux '
      "on x86-64: pip install -e '.[plan]'."
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  options = dict(topology.kind.options)
  if topology.hosts == 1 and topology.chips != _CHIPS_A_HOST:
    bounds = (*topology.layout, 1, 1)[:3]
    options['chips_per_host_bounds'] = list(bounds)
  layout = 'x'.join(map(str, topology.layout))
  return topologies.get_topology_desc(
    platform='tpu',
    topology_name=f'{topology.kind.compiler_name}:{layout}',
    **options,
  ).devices
