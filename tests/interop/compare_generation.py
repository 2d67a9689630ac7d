"""CPU time of sampling images here and in DALLE-pytorch, turn by turn.

  pip install -e .[interop]
  pip install --no-deps dalle-pytorch einops axial-positional-embedding \\
    rotary-embedding-torch
  python tests/interop/compare_generation.py [ROUNDS]

Both have width 256, 8 layers of 8 heads, 64 text tokens and 16 x 16 codes of
8,192, MLPs of as many products (theirs has a gate), and draw from the likelier
half of the codes. Theirs is driven by hand so that its cache is used, and, with
one image, by its public `generate_images`, which does not use it. Prints CPU
seconds of a call without compilation, the least of all rounds, and ratios;
fails if one of these is below what AT_LEAST promises.
"""

import json
import subprocess
import sys
import time
import types

IMAGES = (1, 32)
# How many times as fast this code is, by name of the call.
AT_LEAST = {'1': 3, '32': 3, 'public': 20}
WIDTH, DEPTH, HEADS, TEXT, SIDE, WORDS, CODES = 256, 8, 8, 64, 16, 10_000, 8192


def our_calls():
  """Returns calls by name."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.models import dalle, decoding

  model = dalle.DallE(
    text_vocabulary=WORDS, text_length=TEXT, image_vocabulary=CODES,
    grid=(SIDE, SIDE), width=WIDTH, depth=DEPTH, mlp_dim=6 * WIDTH,
    num_heads=HEADS,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  text = jnp.asarray(rng.integers(1, WORDS, (1, TEXT)), jnp.int32)
  codes = jnp.zeros((1, SIDE * SIDE), jnp.int32)
  variables = jax.jit(model.init)(jax.random.key(0), text, codes)
  variables = jax.tree.map(
    lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), variables
  )
  sample = jax.jit(decoding.sample, static_argnums=0)
  sampling = decoding.Sampling(top_fraction=0.5)

  def call(images):
    keys = decoding.candidate_keys(0, 1, images)
    jax.block_until_ready(sample(model, variables, text, keys, sampling))

  return {str(images): lambda n=images: call(n) for images in IMAGES}


class Anything(types.ModuleType):
  """Stands for what DALLE-pytorch imports and sampling does not need."""

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return type(name, (), {})


def their_calls():
  """Returns the same of DALLE-pytorch, and its public call."""
  for name in (
    'youtokentome', 'transformers', 'taming', 'taming.models',
    'taming.models.vqgan', 'omegaconf', 'pkg_resources', 'ftfy', 'regex',
    'tokenizers', 'tokenizers.processors', 'webdataset', 'tqdm', 'requests',
  ):  # fmt: skip
    sys.modules[name] = Anything(name)
  import torch
  from dalle_pytorch import dalle_pytorch as peer

  torch.set_num_threads(1)
  vae = peer.DiscreteVAE(
    image_size=4 * SIDE, num_layers=2, num_tokens=CODES, codebook_dim=16,
    hidden_dim=8,
  )  # fmt: skip
  model = peer.DALLE(
    dim=WIDTH, vae=vae, num_text_tokens=WORDS, text_seq_len=TEXT, depth=DEPTH,
    heads=HEADS, dim_head=WIDTH // HEADS, rotary_emb=False,
    shift_tokens=False, attn_types=('full',),
  ).eval()  # fmt: skip

  def tokens(images):
    return torch.randint(1, WORDS, (images, TEXT))

  @torch.inference_mode()
  def call(images):
    out, cache = tokens(images), {}
    for _ in range(SIDE * SIDE):
      logits = model(out[:, :TEXT], out[:, TEXT:], cache=cache)[:, -1]
      drawn = peer.gumbel_sample(peer.top_k(logits, thres=0.5), dim=-1)
      out = torch.cat((out, drawn[:, None] - model.num_text_tokens), -1)

  calls = {str(images): lambda n=images: call(n) for images in IMAGES}
  return {**calls, 'public': lambda: model.generate_images(tokens(1))}


def serve(side):
  """Answers each name of a call with its CPU seconds."""
  calls = {'ours': our_calls, 'theirs': their_calls}[side]()
  if side == 'ours':
    for call in calls.values():
      call()
  print('ready', flush=True)
  for line in sys.stdin:
    start = time.process_time()
    calls[line.strip()]()
    print(json.dumps(time.process_time() - start), flush=True)


def main(rounds):
  """Lets both take turns, prints the least of each, and judges the ratios."""
  servers = {
    side: subprocess.Popen(
      [sys.executable, __file__, side],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for side in ('ours', 'theirs')
  }
  for server in servers.values():
    while server.stdout.readline() != 'ready\n':
      assert server.poll() is None, 'a side has died; its error is above'

  def seconds(side, name):
    print(name, file=servers[side].stdin, flush=True)
    return json.loads(servers[side].stdout.readline())

  ratios = {}
  for name, ours in [(str(n), str(n)) for n in IMAGES] + [('public', '1')]:
    both = [
      (seconds('ours', ours), seconds('theirs', name)) for _ in range(rounds)
    ]
    least = [min(side) for side in zip(*both)]
    ratios[name] = least[1] / least[0]
    print(
      f'{name}: {least[0]:.2f} CPU seconds here, {least[1]:.2f} in '
      f'DALLE-pytorch, ratio {ratios[name]:.2f}',
      flush=True,
    )
  for server in servers.values():
    server.stdin.close()
    server.wait()
  short = [
    f'{name}: ratio {ratios[name]:.2f}, expected {factor} or more'
    for name, factor in AT_LEAST.items()
    if not ratios[name] >= factor
  ]
  if short:
    sys.exit('Too slow. ' + '; '.join(short))


if __name__ == '__main__':
  if sys.argv[1:] in (['ours'], ['theirs']):
    serve(sys.argv[1])
  else:
    main(int(sys.argv[1]) if sys.argv[1:] else 3)
