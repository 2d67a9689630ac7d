"""Speed of a ViT or a CLIP here and in transformers' torch, turn by turn.

  pip install -e .[interop]
  python tests/interop/compare_speed.py vit|clip [ROUNDS]

The ViT is Ti/16; the CLIP has that, with patches of 32, and six blocks of
width 256 for texts of 77 tokens. Both train (forward, backward, SGD with
momentum) and predict batches of 8 images of 224 px in float32 on the CPU. Each
lives in a process of its own and they take turns, so that a busy machine is as
busy for one as for the other. Prints the median of the ratios.
"""

import json
import statistics
import subprocess
import sys
import time

BATCH, CALLS = 8, 4


def jax_vit():
  """Returns the training step and the prediction of this package."""
  run, batch = prepared(
    task=dict(name='classification'), model=dict(name='vit', variant='Ti/16')
  )
  return calls(run, batch, run.task.predict)


def jax_clip():
  """Returns the training step of a CLIP, and embedding images and texts."""
  run, batch = prepared(
    task=dict(name='contrastive'),
    model=dict(
      name='clip',
      width=256,
      image=dict(
        name='vit', patch_size=32, width=192, depth=12, mlp_dim=768,
        num_heads=3, patch_bias=False, pre_norm=True, activation='quick_gelu',
        norm_epsilon=1e-5,
      ),
      text=dict(
        vocabulary_size=49_408, length=77, width=256, depth=6, mlp_dim=1024,
        num_heads=4,
      ),
    ),
  )  # fmt: skip
  return calls(
    run,
    batch,
    lambda variables, image: (
      run.task.encode_image(variables, image)[0],
      run.task.encode_text(variables, batch['text'])[0],
    ),
  )


def prepared(**said):
  """Returns a run, and a batch of noise."""
  import numpy as np

  from vit_jax import config
  from vit_jax.training import run as run_lib
  from vit_jax.training import schema

  source = 'captions:none' if said['model']['name'] == 'clip' else 'folder:none'
  said |= dict(
    data=dict(
      **{
        split: dict(source=source, split=split, preprocess='value_range(-1, 1)')
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
  batch = {
    'image': rng.normal(size=(BATCH, 224, 224, 3)).astype(np.float32),
    'label': np.arange(BATCH, dtype=np.int32),
    'identity': np.arange(BATCH, dtype=np.int32),
    'text': rng.integers(1, 49_408, (BATCH, 77), np.int32),
    'truncated': np.zeros(BATCH, bool),
  }
  return run, {name: batch[name] for name in run.task.batch_spec(1)}


def calls(run, batch, function):
  """Returns a training step, and a function of variables and images."""
  import jax

  state = run.init()
  predict = jax.jit(function)
  variables = jax.device_put(jax.device_get(state.evaluated))

  def train():
    nonlocal state
    state, metrics = run.train_step(state, batch)
    jax.block_until_ready((state, metrics))

  return train, lambda: jax.block_until_ready(
    predict(variables, batch['image'])
  )


def torch_vit():
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


def torch_clip():
  """Returns the same of transformers' CLIPModel."""
  import torch
  from transformers import CLIPConfig, CLIPModel

  torch.set_num_threads(2)
  config = CLIPConfig(
    text_config=dict(
      vocab_size=49_408, hidden_size=256, intermediate_size=1024,
      num_hidden_layers=6, num_attention_heads=4, projection_dim=256,
      max_position_embeddings=77,
    ),
    vision_config=dict(
      hidden_size=192, intermediate_size=768, num_hidden_layers=12,
      num_attention_heads=3, image_size=224, patch_size=32, projection_dim=256,
    ),
    projection_dim=256,
  )  # fmt: skip
  model = CLIPModel(config)
  image = torch.randn(BATCH, 3, 224, 224)
  text = torch.randint(1, 49_408, (BATCH, 77))
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

  def train():
    model.train()
    optimizer.zero_grad()
    model(input_ids=text, pixel_values=image, return_loss=True).loss.backward()
    optimizer.step()

  def predict():
    model.eval()
    with torch.inference_mode():
      model(input_ids=text, pixel_values=image)

  return train, predict


def serve(name):
  """Answers each line on standard input with seconds a call."""
  functions = globals()[name]()
  for call in functions:
    call(), call()
  print('ready', flush=True)
  for _ in sys.stdin:
    seconds = []
    for call in functions:
      start = time.perf_counter()
      for _ in range(CALLS):
        call()
      seconds.append((time.perf_counter() - start) / CALLS)
    print(json.dumps(seconds), flush=True)


def main(model, rounds):
  """Lets both take turns, and prints medians."""
  servers = {
    name: subprocess.Popen(
      [sys.executable, __file__, f'{name}_{model}'],
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
  if sys.argv[1:] and '_' in sys.argv[1]:
    serve(sys.argv[1])
  elif sys.argv[1:] and sys.argv[1] in ('vit', 'clip'):
    main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 10)
  else:
    sys.exit(__doc__)
