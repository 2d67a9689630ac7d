r"""LiT: a text tower that learns to read what a trained ViT sees.

Zhai et al., arXiv:2111.07991: the image tower is one that is trained already,
and stays as it is. The argument is that tower.

  python -m vit_jax.train --config=configs/lit.py:B/16 --workdir=DIR \
    --config.init.path=B_16.npz \
    --config.data.train.source='shards:/data/cc12m/*.tar' \
    --config.data.test.source='captions:/data/coco/captions_val2017.jsonl' \
    --config.data.train.split=all --config.data.test.split=all \
    --config.data.expected.train_examples=None

The released towers are under storage.googleapis.com/vit_models/augreg. The
text tower of the paper's public models is BERT; this one is a transformer of
the image tower's size, with CLIP's tokenizer.

Expected of the paper's own, top-1 on ImageNet: B/16 and BERT base 72.1, L/16
and BERT large 75.7.
Cost by formula, in GFLOP a pair: B/16 115 (3 forward passes; those of the
frozen tower are one in fact).
"""

from ml_collections import ConfigDict

from vit_jax.models import vit

VARIANTS = ('S/16', 'B/32', 'B/16', 'L/16')


def get_config(variant: str = 'B/16') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the image tower, one of VARIANTS.
  """
  if variant not in VARIANTS:
    raise ValueError(f'{variant!r} is not one of {", ".join(VARIANTS)}')
  size = vit.VARIANTS[variant.partition('/')[0]]
  images = 'resize(224)|value_range(-1, 1)'
  return ConfigDict(
    dict(
      task=dict(name='contrastive'),
      model=dict(
        name='clip',
        width=size.width,
        image=dict(name='vit', variant=variant),
        text=dict(
          vocabulary_size=49_408,
          length=32,
          width=size.width,
          depth=size.depth,
          mlp_dim=size.mlp_dim,
          num_heads=size.num_heads,
        ),
        # Texts have to come to the images, which stay where they are.
        image_head='none',
        initial_scale=10.0,
      ),
      # The classification head is of no use, and is left out.
      init=dict(path='B_16.npz', into='image'),
      data=dict(
        train=dict(source='shards:pairs', split='train', preprocess=images),
        test=dict(source='captions:test', split='test', preprocess=images),
        text=dict(tokenizer='openai'),
        workers=8,
        expected=dict(train_examples=12_000_000, image_shape=(224, 224, 3)),
      ),
      batch_size=16_384,
      total='60000steps',
      optimizer=dict(
        name='adamw',
        learning_rate=1e-3,
        weight_decay=1e-4,
        weight_decay_convention='independent',
        clip_norm=1.0,
        # This line is LiT.
        freeze=('image/.*',),
      ),
      schedule=dict(name='cosine', warmup='10000steps'),
      precision=dict(compute='bfloat16'),
      eval=dict(every='2000steps', batch_size=4096, retrieval='all'),
      checkpoint=dict(every='2000steps', keep=3),
    )
  )
