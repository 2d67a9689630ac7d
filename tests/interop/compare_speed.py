"""Speed of ViT-Ti/16 here and in transformers' torch, turn by turn.

  pip install -e .[interop]
  python tests/interop/compare_speed.py [ROUNDS]

Both train (forward, backward, SGD with momentum) and predict batches of 8
images of 224 px in float32 on the CPU. Each lives in a process of its own
and they take turns, so that a busy machine is as busy for one as for the
other. Prints the median of the ratios.
"""

import json
import statistics
import subprocess
import sys
import time

BATCH, CALLS = 8, 4


def jax_calls():
  """Returns the training step and the prediction of this package."""
  import jax
  import numpy as np

  from vit_jax import config
  from vit_jax.training import run as run_lib
  from vit_jax.training import schema

  said = dict(
    task=dict(name='classification'),
    model=dict(name='vit', variant='Ti/16'),
    data=dict(
      **{
        split: dict(
          source='folder:none', split=split, preprocess='value_range(-1, 1)'
        )
        for split in ('train', 'test')
      },
      expected=dict(
        train_examples=1000, classes=1000, image_shape=(224, 224, 3)
      ),
    ),
    batch_size=BATCH,
    total='1000000steps',
    optimizer=dict(name='sgd', learning_rate=1e-3),
    schedule=dict(name='constant'),
    eval=dict(every='1ep'),
    checkpoint=dict(every='1ep'),
  )
  run = run_lib.prepare(config.resolve(said, [], schema.SCHEMA), planned=True)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(BATCH, 224, 224, 3)).astype(np.float32)
  batch = {'image': image, 'label': np.arange(BATCH, dtype=np.int32)}
  state = run.init()
  predict = jax.jit(run.task.predict)
  variables = jax.device_get(state.evaluated)
  variables = jax.device_put(variables)

  def train():
    nonlocal state
    state, metrics = run.train_step(state, batch)
    jax.block_until_ready((state, metrics))

  return train, lambda: jax.block_until_ready(predict(variables, image))


def torch_calls():
  """Returns the same of transformers' ViTForImageClassification."""
  import torch
  from transformers import ViTConfig, ViTForImageClassification

  torch.set_num_threads(2)
  model = ViTForImageClassification(
    ViTConfig(
      hidden_size=192,
      num_hidden_layers=12,
      num_attention_heads=3,
      intermediate_size=768,
      hidden_act='gelu_pytorch_tanh',
      num_labels=1000,
    )
  )
  image = torch.randn(BATCH, 3, 224, 224)
  label = torch.arange(BATCH)
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

  def train():
    model.train()
    optimizer.zero_grad()
    model(pixel_values=image, labels=label).loss.backward()
    optimizer.step()

  def predict():
    model.eval()
    with torch.inference_mode():
      model(pixel_values=image)

  return train, predict


def serve(name):
  """Answers each line on standard input with seconds a call."""
  calls = {'jax': jax_calls, 'torch': torch_calls}[name]()
  for call in calls:
    call(), call()
  print('ready', flush=True)
  for _ in sys.stdin:
    seconds = []
    for call in calls:
      start = time.perf_counter()
      for _ in range(CALLS):
        call()
      seconds.append((time.perf_counter() - start) / CALLS)
    print(json.dumps(seconds), flush=True)


def main(rounds):
  """Lets both take turns, and prints medians."""
  servers = {
    name: subprocess.Popen(
      [sys.executable, __file__, name],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for name in ('jax', 'torch')
  }
  seconds = {name: [] for name in servers}
  for server in servers.values():
    while server.stdout.readline() != 'ready\n':
      assert server.poll() is None, 'a side has died; its error is above'
  for _ in range(rounds):
    for name, server in servers.items():
      print('go', file=server.stdin, flush=True)
      seconds[name].append(json.loads(server.stdout.readline()))
  for server in servers.values():
    server.stdin.close()
    server.wait()
  for i, what in enumerate(('training', 'inference')):
    rates = {
      name: [BATCH / each[i] for each in seconds[name]] for name in seconds
    }
    ratio = statistics.median(
      ours / theirs for ours, theirs in zip(rates['jax'], rates['torch'])
    )
    print(
      f'{what}: {statistics.median(rates["jax"]):.1f} images/s here, '
      f'{statistics.median(rates["torch"]):.1f} in torch, ratio {ratio:.3f}'
    )


if __name__ == '__main__':
  if sys.argv[1:] in (['jax'], ['torch']):
    serve(sys.argv[1])
  else:
    main(int(sys.argv[1]) if sys.argv[1:] else 10)
