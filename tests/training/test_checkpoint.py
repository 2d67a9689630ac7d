"""Checkpoints: exact, safe against kills and damage, and frugal with disk."""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.training import checkpoint

jax.config.update('jax_num_cpu_devices', 8)

Checkpoints = checkpoint.Checkpoints


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  step: jax.Array
  params: dict
  average: dict | None
  optimizer: optax.OptState
  key: jax.Array


def make_state(seed=0):
  random = np.random.default_rng(seed)
  params = {
    'encoder': {'kernel': jnp.asarray(random.normal(size=(16, 24)), 'float32')},
    'head': {
      'kernel': jnp.asarray(random.normal(size=(24, 8)), 'bfloat16'),
      'mask': jnp.asarray(random.random((8,)) < 0.5),
    },
  }
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(1e-3)
  ).init(jax.tree.map(lambda x: x.astype('float32'), params))
  return State(
    step=jnp.int32(seed),
    params=params,
    average=None,
    optimizer=optimizer,
    key=jax.random.key_data(jax.random.key(seed)),
  )


def shardings(state, devices):
  """Splits each matrix over the first `devices` devices."""
  mesh = jax.make_mesh(
    (devices,),
    ('fsdp',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:devices],
  )

  def place(leaf):
    spec = jax.P(None, 'fsdp') if leaf.ndim == 2 else jax.P()
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.tree.map(place, state)


def abstract(state, devices=1):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings(state, devices),
  )


def assert_same(a, b):
  """Equal to the last bit, in the same tree."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    assert x.shape == y.shape
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(directory, steps, **options):
  with Checkpoints(directory, **options) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {'step': step})


def test_round_trip_is_exact(tmp_path):
  state = make_state(7)
  # Bits that arithmetic would lose: NaN with a payload, minus zero, denormal.
  odd = np.array([0x7FC01234, 0x80000000, 1, 0x7F800000], np.uint32)
  state.params['odd'] = jnp.asarray(odd.view(np.float32))
  meta = {'classes': ['cat', 'dog'], 'mean': (0.1, 0.2), 'none': None, '1': {}}
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.restore(abstract(state)) is None
    assert checkpoints.latest() is None
    checkpoints.save(3, state, meta, {'test/accuracy': np.float32(0.5)})
    restored, restored_meta, step = checkpoints.restore(abstract(state))
  assert_same(restored, state)
  assert restored_meta == {**meta, 'mean': [0.1, 0.2]}
  assert step == 3


def test_reading_leaves_the_disk_alone(tmp_path):
  with Checkpoints(tmp_path / 'none') as checkpoints:
    assert checkpoints.steps() == []
  assert not (tmp_path / 'none').exists()


def test_restores_on_another_mesh(tmp_path):
  state = make_state(1)
  for step, (before, after) in enumerate([(8, 4), (4, 1), (1, 8)]):
    placed = jax.device_put(state, shardings(state, before))
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(step, placed, {})
      state, _, _ = checkpoints.restore(abstract(state, after))
    assert_same(state, make_state(1))
    kernel = state.params['encoder']['kernel']
    assert len(kernel.sharding.device_set) == after
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 24 // after)


@pytest.mark.parametrize('before, after', [(8, 2), (2, 4), (3, 2), (4, 4)])
def test_what_replicas_kept_is_shared_out_anew(tmp_path, before, after):
  random = np.random.default_rng(0)
  error = random.normal(size=(before, 6, 4)).astype(np.float32)

  def tree(leaf):
    return {'exchange': {'error': {'mlp/up/kernel': leaf}}}

  def leaf(replicas, columns=4):
    mesh = jax.make_mesh(
      (replicas, 2), ('data', 'fsdp'),
      axis_types=(jax.sharding.AxisType.Auto,) * 2,
      devices=jax.devices()[: 2 * replicas],
    )  # fmt: skip
    sharding = jax.sharding.NamedSharding(mesh, jax.P('data', 'fsdp'))
    shape = (replicas, 6, columns)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, tree(jnp.asarray(error)), {})
    wanted = leaf(after)
    state, _, _ = checkpoints.restore(tree(wanted))
    with pytest.raises(checkpoint.CheckpointError, match='another dtype'):
      checkpoints.restore(tree(leaf(after, columns=5)))
  (found,) = jax.tree.leaves(state)
  assert found.sharding == wanted.sharding
  if before == after:
    np.testing.assert_array_equal(found, error)
  else:
    expected = np.broadcast_to(error.mean(0), wanted.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('devices', [1, 8])
def test_state_may_be_donated_at_once(tmp_path, devices):
  def make(seed):
    state = {'w': jnp.full((1024, 1024), seed, jnp.float32), 'n': jnp.ones(())}
    return jax.device_put(state, shardings(state, devices))

  overwrite = jax.jit(
    lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0
  )
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    for step in range(5):
      state = make(step)
      checkpoints.save(step, state, {})
      for _ in range(3):
        state = overwrite(state)
      jax.block_until_ready(state)
      # The memory of what was donated is used again.
      del state
    for step in range(5):
      tree, _, _ = checkpoints.load(step=step)
      assert (tree['w'] == step).all()


KILLED = """
import sys
import jax.numpy as jnp
from vit_jax.training.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
  for step in range(1, 1000):
    state = {str(i): jnp.full((512, 512), step + i) for i in range(20)}
    checkpoints.save(step, state, {'step': step})
    print(step, flush=True)
"""


@pytest.mark.parametrize('delay', [0.0, 0.01, 0.03, 0.06])
def test_kill_while_saving(tmp_path, delay):
  root = pathlib.Path(checkpoint.__file__).parents[2]
  process = subprocess.Popen(
    [sys.executable, '-c', KILLED, str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    text=True,
  )
  for line in process.stdout:
    if line.strip() == '4':
      time.sleep(delay)
      process.send_signal(signal.SIGKILL)
      break
  process.wait()
  process.stdout.close()
  spec = {str(i): jax.ShapeDtypeStruct((512, 512), 'int32') for i in range(20)}
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    state, meta, step = checkpoints.restore(spec)
    # Step 4 was under way; when it began, step 3 was finished.
    assert step >= 3
    assert step == checkpoints.latest()
    assert meta == {'step': step}
    for i in range(20):
      assert (state[str(i)] == step + i).all()
    # Left-overs of the torn save go away with the next one.
    checkpoints.save(5000, state, {}, wait=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {str(step), '5000'}


def files_of(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, where=0.5):
  data = bytearray(path.read_bytes())
  if data:
    data[int(len(data) * where)] ^= 0x10
  path.write_bytes(bytes(data))


def flip_early(path):
  flip(path, 0.2)


def flip_late(path):
  flip(path, 0.9)


def garble(path):
  path.write_bytes(b'\x00garbage' * 10)


@pytest.mark.parametrize(
  'damage',
  [truncate, flip, flip_early, flip_late, garble, pathlib.Path.unlink],
)
def test_damage_to_any_file(tmp_path, damage, caplog):
  save_steps(tmp_path / 'whole', [1, 2], keep=2)
  found_damaged = set()
  for file in files_of(tmp_path / 'whole' / '2'):
    copy = tmp_path / 'copy'
    shutil.copytree(tmp_path / 'whole', copy)
    damage(copy / '2' / file)
    caplog.clear()
    with Checkpoints(copy, keep=1) as checkpoints:
      state, meta, step = checkpoints.restore(abstract(make_state()))
      assert_same(state, make_state(step))
      assert meta == {'step': step}
      if step == 1:
        found_damaged.add(str(file))
        assert f'step 2 in {copy}' in caplog.text
        # The run goes on from step 1, and saves step 2 once more.
        checkpoints.save(2, make_state(2), {'step': 2}, wait=True)
        assert checkpoints.restore(abstract(make_state()))[2] == 2
        assert checkpoints.steps() == [2]
    shutil.rmtree(copy)
  assert 'meta/data.json' in found_damaged
  assert 'state/manifest.ocdbt' in found_damaged
  assert any(file.startswith('state/d/') for file in found_damaged) or any(
    file.startswith('state/ocdbt.process_0/d/') for file in found_damaged
  )


def test_damaged_ones_do_not_push_intact_ones_out(tmp_path):
  save_steps(tmp_path, [1, 2, 3], keep=2)
  garble(tmp_path / '3' / 'meta' / 'data.json')
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.restore(abstract(make_state()))[2] == 2
    checkpoints.save(4, make_state(4), {})
    assert checkpoints.steps() == [2, 4]


def test_numbers_that_only_the_checksum_knows_are_wrong(tmp_path, caplog):
  save_steps(tmp_path, [1, 2], keep=2)
  # A healthy item as far as the storage layer can tell.
  shutil.rmtree(tmp_path / '2' / 'state')
  shutil.copytree(tmp_path / '1' / 'state', tmp_path / '2' / 'state')
  with Checkpoints(tmp_path) as checkpoints:
    state, _, step = checkpoints.restore(abstract(make_state()))
    assert step == 1
    assert_same(state, make_state(1))
    assert 'params/encoder/kernel' in caplog.text
    with pytest.raises(OSError, match='params/head/kernel'):
      checkpoints.load(['params/head'], step=2)


def test_a_wrong_meta_that_is_still_json_is_found(tmp_path):
  save_steps(tmp_path, [1, 2], keep=2)
  file = tmp_path / '2' / 'meta' / 'data.json'
  record = json.loads(file.read_text())
  record['meta']['step'] = 3
  file.write_text(json.dumps(record))
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(abstract(make_state()))[1:] == ({'step': 1}, 1)


def test_a_renamed_folder_is_found(tmp_path):
  save_steps(tmp_path, [1, 2], keep=2)
  (tmp_path / '2').rename(tmp_path / '7')
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(abstract(make_state()))[2] == 1


def test_all_damaged_is_an_error(tmp_path):
  save_steps(tmp_path, [1, 2], keep=2)
  for step in '12':
    garble(tmp_path / step / 'meta' / 'data.json')
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(OSError, match=r'(?s)No intact .*\n  2: .*\n  1: .*move'),
  ):
    checkpoints.restore(abstract(make_state()))


def test_another_tree_is_an_error_that_names_the_differences(tmp_path):
  save_steps(tmp_path, [1, 2], keep=2)
  other = abstract(make_state())
  head = other.params.pop('head')
  other.params['classifier'] = head['kernel']
  kernel = other.params['encoder']['kernel']
  other.params['encoder']['kernel'] = jax.ShapeDtypeStruct(
    (16, 32), 'float32', sharding=kernel.sharding
  )
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(OSError) as caught:
      checkpoints.restore(other)
    # Nothing is damaged: a save of the same step is refused.
    with pytest.raises(ValueError, match='Step 2 is already saved'):
      checkpoints.save(2, make_state(2), {})
  text = str(caught.value)
  assert f'{tmp_path / "2"}' in text
  missing, rest = text.split('unexpected in it')
  assert '\n  params/classifier bfloat16[24, 8]' in missing
  unexpected, other_shape = rest.split('of another dtype')
  assert '\n  params/head/mask bool[8]' in unexpected
  assert (
    'encoder/kernel: checkpoint float32[16, 24], expected float32[16, 32]'
    in other_shape
  )


@pytest.mark.parametrize(
  'metric, best, kept',
  [
    ('', None, [5, 6]),
    ('test/accuracy', 2, [2, 5, 6]),
    ('test/loss', 4, [4, 5, 6]),
    ('retrieval/median_rank', 4, [4, 5, 6]),
  ],
)
def test_keeps_the_last_and_the_best(tmp_path, metric, best, kept):
  values = [0.5, 0.9, 0.9, 0.2, float('nan'), float('inf')]
  with Checkpoints(tmp_path, keep=2, best=metric) as checkpoints:
    for step, value in enumerate(values, start=1):
      metrics = {'test/accuracy': value, 'test/loss': value, 'other': 0}
      metrics['retrieval/median_rank'] = value
      checkpoints.save(step, {'x': jnp.ones(3)}, {}, metrics)
      checkpoints.wait()
    assert checkpoints.steps() == kept
    assert checkpoints.best() == best
    assert checkpoints.latest() == 6
  with Checkpoints(tmp_path, keep=2, best=metric) as checkpoints:
    assert checkpoints.best() == best
    # Without an evaluation a checkpoint is never the best.
    checkpoints.save(7, {'x': jnp.ones(3)}, {})
    assert checkpoints.steps() == sorted({*kept[:-2], 6, 7})
    if metric:
      with pytest.raises(ValueError, match="'other'"):
        checkpoints.save(8, {'x': jnp.ones(3)}, {}, {'other': 1})
      assert checkpoints.load(step='best')[2] == best
    else:
      with pytest.raises(FileNotFoundError, match=r'\[6, 7\]'):
        checkpoints.load(step='best')


def test_loads_parts(tmp_path):
  save_steps(tmp_path, [1, 2], keep=2)
  with Checkpoints(tmp_path) as checkpoints:
    tree, meta, step = checkpoints.load(['params/head', 'step'])
    assert_same(tree['params'], {'head': make_state(2).params['head']})
    assert set(tree) == {'params', 'step'}
    assert isinstance(tree['params']['head']['kernel'], np.ndarray)
    assert (meta, step) == ({'step': 2}, 2)
    tree, _, _ = checkpoints.load(step=1)
    assert set(tree) == {'step', 'params', 'optimizer', 'key'}
    with pytest.raises(KeyError, match=r"'average'.*'params'"):
      checkpoints.load(['average'])
    with pytest.raises(FileNotFoundError, match=r'step=9 .*\[1, 2\]'):
      checkpoints.load(step=9)
  with (
    Checkpoints(tmp_path / 'empty') as checkpoints,
    pytest.raises(FileNotFoundError, match='empty'),
  ):
    checkpoints.load()


def test_a_failed_save_is_told_and_loses_nothing(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  large = {'x': jnp.asarray(np.random.default_rng(0).random(200_000))}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, large, {}, wait=True)
    # Stands for a full disk: no file may be larger.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
      checkpoints.save(2, large, {})
      with pytest.raises(OSError, match=f'step 2 in {tmp_path} failed'):
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps() == [1]
    assert checkpoints.load()[2] == 1
    checkpoints.save(3, large, {}, wait=True)
    assert checkpoints.steps() == [3]
    assert [path.name for path in tmp_path.iterdir()] == ['3']


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    Checkpoints(tmp_path / 'file' / 'checkpoints') as checkpoints,
    pytest.raises(OSError, match=f'{tmp_path}/file/checkpoints failed'),
  ):
    checkpoints.save(1, {'x': jnp.ones(3)}, {})


def test_close_finishes_and_leaves_no_thread(tmp_path):
  def lasting():
    # Daemons end with the process; they do not keep it.
    return {thread for thread in threading.enumerate() if not thread.daemon}

  before = lasting()
  checkpoints = Checkpoints(tmp_path, keep=3)
  for step in range(3):
    checkpoints.save(step, make_state(step), {})
  checkpoints.close()
  checkpoints.close()
  assert lasting() <= before
  assert Checkpoints(tmp_path).steps() == [0, 1, 2]


@pytest.mark.parametrize(
  'state, meta, error, text',
  [
    ({'x': 3}, {}, TypeError, "'x' of the state is of .*int"),
    ({'x': jnp.ones(3)}, {'f': len}, TypeError, 'no JSON'),
    ({'1': jnp.ones(3), 1: jnp.ones(3)}, {}, Exception, '.'),
  ],
)
def test_what_cannot_be_saved(tmp_path, state, meta, error, text):
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(error, match=text),
  ):
    checkpoints.save(1, state, meta)


def test_keep_must_leave_one(tmp_path):
  with pytest.raises(ValueError, match='keep=0'):
    Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'bool'])
def test_checksum_sees_every_bit(dtype):
  random = np.random.default_rng(0)
  array = np.asarray(jnp.asarray(random.integers(0, 2, (6, 8)), dtype))
  whole = int(checkpoint._checksum(array))
  sharding = shardings({'x': array}, 8)['x']
  assert int(checkpoint._checksum(jax.device_put(array, sharding))) == whole
  seen = {whole}
  raw = array.tobytes()
  # A bool has one bit.
  for bit in range(0, 8 * len(raw), 8 if dtype == 'bool' else 1):
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    changed = np.frombuffer(bytes(changed), array.dtype).reshape(array.shape)
    seen.add(int(checkpoint._checksum(changed)))
  assert len(seen) == 1 + len(raw) * (1 if dtype == 'bool' else 8)
  # Two rows in each other's place; and two signs at once.
  assert int(checkpoint._checksum(array[::-1])) != whole
  if dtype == 'float32':
    assert int(checkpoint._checksum(-array)) != whole
