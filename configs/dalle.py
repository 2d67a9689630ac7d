r"""DALL-E: from a text to a picture of 256x256 pixels, as 32x32 codes of 8,192.

Ramesh et al., "Zero-Shot Text-to-Image Generation", arXiv:2102.12092, section
2.2 and appendix B. The argument is the size: 12b is the paper's, of 64 layers
and a width of 3968; 1.2b and 0.3b are for a v3-32 and a v3-8, with all else
like the paper's but the batch and the length. 0.3b has the shape of GPT-2's
second, 1.2b that of minDALL-E.

The 250 million pairs of the paper are not public. Plans need neither them nor
a discrete VAE:

  python -m vit_jax.train --config=configs/dalle.py:0.3b --check
  python -m vit_jax.plan --config=configs/dalle.py:0.3b --topology=v3-8

With pairs of your own, the discrete VAE of configs/dvae.py (or the one that
OpenAI has released: name its folder in place of runs/dvae) and a tokenizer,

  python -m vit_jax.train_tokenizer shards:DIR --size=16384 \
    --output=merges.txt.gz

images are written as codes once, eight crops of each, and then trained on:

  python -m vit_jax.encode --config=configs/dalle.py:0.3b --crops=8 \
    --out=CODES --config.data.train.source=shards:DIR \
    --config.data.test.source=shards:DIR --config.task.image_codes=runs/dvae
  python -m vit_jax.train --config=configs/dalle.py:0.3b --workdir=runs/dalle \
    --config.data.train.source=codes:CODES \
    --config.data.test.source=codes:CODES \
    --config.task.image_codes=runs/dvae \
    --config.data.text.tokenizer=merges.txt.gz \
    --config.data.expected.train_examples=N

What differs from the paper. The rate falls along half a cosine to 1/32 of its
peak, where it was halved by hand five times when progress stopped. The moving
average is taken every step: 0.99 every 25 updates is 0.9996 every update. The
second moment is not clipped to 5. Language is told by the letters. Captions are
left out of a tenth of the examples, so that guidance works; 0 is the paper's.

Expected: of 12b a validation loss of 3.6 to 3.7 nats a token (by an author,
https://github.com/openai/DALL-E/issues/16); of the others not known.

Cost by formula (3 forward passes a pair, of which 6 FLOP for each parameter of
a layer and each token are most): 2.52, 9.57 and 94.5 TFLOP for 0.3b, 1.2b and
12b. Times the pairs of a step and the steps, 1.3e20, 9.8e20 and 4.2e22 FLOP.

By the TPU's compiler (`python -m vit_jax.plan --topology=v3-8`), with what it
chooses:

  0.3b  v3-8     mesh data=2 fsdp=4, optimizer.accumulate=4, remat=names: 7.3
                 GiB a core, 4.10 s a step, 32 % of the peak, 9.5 days, 76
                 TPU-core-days
  0.3b  v3-32    mesh data=8 fsdp=4, remat=names: 6.3 GiB, 1.03 s, 2.4 days, 76
                 TPU-core-days
  1.2b  v3-32    mesh data=4 fsdp=8, optimizer.accumulate=4, remat=names: 10.1
                 GiB, 6.43 s, 39 %, 14.9 days, 476 TPU-core-days
  12b   v3-1024  mesh data=8 fsdp=128, remat=names: 8.4 GiB, 5.64 s, 27 %, 28
                 days, 28,800 TPU-core-days
"""

from ml_collections import ConfigDict

# Width and depth of the transformer, heads are of 64 channels; pairs of a
# step, and steps.
SIZES = {
  '0.3b': (1024, 24, 256, 200_000),
  '1.2b': (1536, 42, 512, 200_000),
  '12b': (3968, 64, 1024, 430_000),
}
VARIANTS = tuple(SIZES)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the size, one of VARIANTS.
  """
  if variant not in SIZES:
    raise ValueError(f'{variant!r} is not one of {", ".join(SIZES)}')
  width, depth, batch_size, steps = SIZES[variant]
  papers = variant == '12b'
  return ConfigDict(
    dict(
      # Without `image_codes` it can be planned, and learn codes, but what it
      # draws cannot be seen.
      task=dict(name='text_to_image', text_weight=1 / 8, caption_dropout=0.1),
      model=dict(
        name='dalle',
        text_vocabulary=16_384,
        # With the start of the stream 256, which fills the tiles of a TPU.
        text_length=256 if papers else 255,
        image_vocabulary=8192,
        grid=(32, 32),
        width=width,
        depth=depth,
        mlp_dim=4 * width,
        num_heads=width // 64,
        patterns=('row', 'column', 'row', 'row'),
        last_pattern='convolutional',
        # Unrolled, so many layers take long to trace and to compile.
        scan=True,
      ),
      data=dict(
        train=dict(
          source='codes:data/codes',
          split='train',
          # From near the centre, and never mirrored: there may be writing.
          preprocess=(
            'square_crop(256, 256, 288, 0.375, 0.625)|value_range(0, 1)'
          ),
        ),
        test=dict(
          source='codes:data/codes',
          split='test',
          preprocess='resize_small(256)|central_crop(256)|value_range(0, 1)',
        ),
        text=dict(
          tokenizer='merges.txt.gz',
          bpe_dropout=0.1,
          # The paper names what it filters, not by how much: captions that are
          # short, not English, or boilerplate, and images that are narrow.
          characters=(5, float('inf')),
          latin=0.5,
          without=r'(?i)\bphotographed (on|in) ',
          aspect=2.0,
        ),
        expected=dict(train_examples=250_000_000, image_shape=(256, 256, 3)),
        max_broken=0.01,
      ),
      batch_size=batch_size,
      total=f'{steps}steps',
      optimizer=dict(
        name='adamw',
        learning_rate=4.5e-4,
        weight_decay=4.5e-2,
        b1=0.9,
        b2=0.96,
        epsilon=1e-8,
        clip_norm=4.0,
        average=0.9996,
        # The paper stores both moments in 16 bits of its own.
        moment_dtype='bfloat16' if papers else 'float32',
      ),
      schedule=dict(name='cosine', warmup='5000steps', final=1 / 32),
      precision=dict(compute='bfloat16'),
      eval=dict(every='5000steps'),
      checkpoint=dict(every='5000steps'),
      log_every='100steps',
    )
  )
