"""Names of TPUs mean what the compiler and the data sheets say."""

import importlib.util

import pytest

from vit_jax import config
from vit_jax.planning import topologies

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler: pip install -e .[plan]',
)


@pytest.mark.parametrize(
  'name,chips,cores,hosts,devices',
  [
    ('v3-8', 4, 8, 1, 8),
    ('v3-32', 16, 32, 4, 32),
    ('v2-512', 256, 512, 64, 512),
    ('v4-8', 4, 8, 1, 4),
    ('v4-32', 16, 32, 4, 16),
    ('v5e-8', 8, 8, 1, 8),
    ('v5litepod-16', 16, 16, 4, 16),
    ('v5p-16', 8, 16, 2, 8),
    ('v6e-1', 1, 1, 1, 1),
  ],
)
def test_names_are_those_they_are_rented_under(
  name, chips, cores, hosts, devices
):
  topology = topologies.parse(name)
  assert topology.chips == chips
  assert topology.chips * topology.kind.cores == cores
  assert topology.hosts == hosts
  assert topology.size == devices
  text = str(topology)
  assert f'{chips:,} chip' in text and f'{cores:,} core' in text


@pytest.mark.parametrize('kind', topologies.KINDS.values())
def test_one_device_has_its_share_of_a_chip(kind):
  share = kind.cores if kind.is_core else 1
  assert kind.hbm_bytes_per_s * share == kind.hbm_gb_per_s * 1e9
  assert kind.links_bytes_per_s * share == kind.links_gb_per_s * 1e9
  if kind.clock_mhz:
    # Multiplications of 128 x 128 matrix units, in whole units.
    cores = 1 if kind.is_core else kind.cores
    units = kind.peak_flops / (2 * 128**2 * cores * kind.clock_mhz * 1e6)
    assert round(units) in (1, 2, 4) and abs(units - round(units)) < 0.03


@pytest.mark.parametrize(
  'name,message',
  [
    ('v3-9', 'There is no v3-9; there are v3-8, v3-32'),
    ('v33-8', "Did you mean 'v3-8'"),
    ('a100', 'is not a TPU topology'),
  ],
)
def test_names_that_are_none(name, message):
  with pytest.raises(config.ConfigError, match=message):
    topologies.parse(name)


def test_says_how_to_install_the_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(config.ConfigError, match=r"pip install -e '\.\[plan\]'"):
    topologies.devices(topologies.parse('v3-8'))


@needs_compiler
def test_the_compiler_knows_all_of_them():
  for topology in topologies.TOPOLOGIES.values():
    devices = topologies.devices(topology)
    assert len(devices) == topology.size, topology
    hosts = {device.process_index for device in devices}
    assert len(hosts) == topology.hosts, topology
    kinds = {device.device_kind for device in devices}
    assert kinds == {topology.kind.device_kind}, topology
