r"""SigLIP: images and texts in one space, each pair judged by itself.

Zhai et al., arXiv:2303.15343. The argument is the image tower.

  python -m vit_jax.train --config=configs/siglip.py:B/16 --workdir=DIR \
    --config.data.train.source='shards:/data/pairs/*.tar' \
    --config.data.test.source='captions:/data/coco/captions_val2017.jsonl' \
    --config.data.train.split=all --config.data.test.split=all \
    --config.data.expected.train_examples=None

The released models read texts by SentencePiece, which is not here; this one
reads them as CLIP does.

Expected of the paper's own, on WebLI (zero-shot top-1 on ImageNet, of the
released models, from memory): B/16 76.0 at 224 pixels, L/16 80.5 at 256.
Cost by formula (3 forward passes a pair), in GFLOP: S/16 36; `--check` prints
the others'.

A batch of 32,768 is all that helps (section 4.3). The similarities of a batch
never exist at once: they pass around the devices in blocks of 512 rows.
"""

from ml_collections import ConfigDict

from vit_jax.models import vit

VARIANTS = ('S/16', 'B/16', 'L/16')
BATCH_SIZE = 32_768


def get_config(variant: str = 'B/16') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the image tower, one of VARIANTS; texts get one of its sizes.
  """
  if variant not in VARIANTS:
    raise ValueError(f'{variant!r} is not one of {", ".join(VARIANTS)}')
  size = vit.VARIANTS[variant.partition('/')[0]]
  common = dict(activation='gelu_tanh', norm_epsilon=1e-6, kernel_init='xavier')
  images = 'resize(224)|value_range(-1, 1)'
  return ConfigDict(
    dict(
      task=dict(name='contrastive', loss_function='sigmoid', ring=True),
      model=dict(
        name='clip',
        width=size.width,
        image=dict(
          name='vit',
          variant=variant,
          pooling='map',
          kernel_init='xavier',
        ),  # fmt: skip
        text=dict(
          vocabulary_size=49_408,
          length=64,
          width=size.width,
          depth=size.depth,
          mlp_dim=size.mlp_dim,
          num_heads=size.num_heads,
          causal=False,
          pooling='map',
          **common,
        ),
        image_head='none',
        text_head='affine',
        # Section 3.2: t' = log 10 and b = -10. Without a number the bias would
        # follow from the batch: -log(batch_size - 1), here -10.4.
        initial_scale=10.0,
        initial_bias=-10.0,
      ),
      data=dict(
        train=dict(source='shards:pairs', split='train', preprocess=images),
        test=dict(source='captions:test', split='test', preprocess=images),
        text=dict(tokenizer='openai'),
        workers=8,
        expected=dict(train_examples=1_000_000_000, image_shape=(224, 224, 3)),
      ),
      batch_size=BATCH_SIZE,
      total='9e9examples',
      optimizer=dict(
        name='adamw',
        learning_rate=1e-3,
        # Less than usual, or large batches are not stable (figure 5).
        b2=0.95,
        weight_decay=1e-4,
        weight_decay_convention='independent',
        clip_norm=1.0,
      ),
      schedule=dict(name='cosine', warmup='10000steps'),
      precision=dict(compute='bfloat16'),
      eval=dict(every='2000steps', batch_size=4096, retrieval='all'),
      checkpoint=dict(every='2000steps', keep=3),
    )
  )
