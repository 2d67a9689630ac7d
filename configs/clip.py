r"""CLIP as it was trained: images and texts of the web in one space.

Radford et al., arXiv:2103.00020, tables 18 to 20. The argument is the model.

  python -m vit_jax.train --config=configs/clip.py:ViT-B/32 --workdir=DIR \
    --config.data.train.source='shards:/data/laion/*.tar' \
    --config.data.test.source='captions:/data/coco/captions_val2017.jsonl' \
    --config.data.train.split=all --config.data.test.split=all \
    --config.data.expected.train_examples=None

The 400 million pairs of the paper were never published; sources of pairs are
in `vit_jax/data/captions.py`.

Expected with those, top-1 on ImageNet by the 80 templates, in per cent (of the
released models; from memory): RN50 59.6, RN101 62.2, RN50x4 65.8, RN50x16 70.5,
RN50x64 73.6, ViT-B/32 63.2, ViT-B/16 68.6, ViT-L/14 75.3, ViT-L/14@336 76.2.

A batch of 32,768 on the 32 cores of a v3-32 is 1,024 pairs a core. All their
similarities are 1,024 x 32,768 float32 = 128 MiB a core, and `task.ring=True`
needs 1,024 x 512 of them at a time. Where activations do not fit,
`optimizer.accumulate` computes features in parts and is still exact (ViT
towers; batch norm would see parts, so the ResNets cannot).

By the TPU's compiler (`python -m vit_jax.plan --topology=v3-32`), ViT-B/32 in 4
such parts, the mesh `data` alone: 8.7 GiB a core, 2.26 s a step, 10 days, 327
TPU-core-days. On a v3-8 in 16 parts: 11.0 GiB, 8.96 s, 40 days, 324.

ViT-L/14@336 goes on from ViT-L/14 for one epoch: --config.init=runs/l14.

Cost by formula (3 forward passes a pair), in GFLOP: ViT-B/32 43, RN50 53;
`--check` prints the others'.
"""

from ml_collections import ConfigDict

from vit_jax.models import clip

# Peaks of the learning rate; of L/14@336 it is from memory.
LEARNING_RATES = {
  'RN50': 5e-4,
  'RN101': 5e-4,
  'RN50x4': 5e-4,
  'RN50x16': 4e-4,
  'RN50x64': 3.6e-4,
  'ViT-B/32': 5e-4,
  'ViT-B/16': 5e-4,
  'ViT-L/14': 4e-4,
  'ViT-L/14@336': 2e-5,
}
VARIANTS = tuple(LEARNING_RATES)
# Of WebImageText.
PAIRS = 400_000_000
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def get_config(variant: str = 'ViT-B/32') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the model, one of VARIANTS.
  """
  if variant not in VARIANTS:
    raise ValueError(f'{variant!r} is not one of {", ".join(VARIANTS)}')
  size = clip.VARIANTS[variant].image_size
  is_vit = variant.startswith('ViT')
  floats = f'standardize({_MEAN}, {_DEVIATION})'
  return ConfigDict(
    dict(
      task=dict(name='contrastive'),
      model=dict(name='clip', **clip.variant(variant)),
      data=dict(
        train=dict(
          source='shards:pairs',
          split='train',
          # "A random square crop from resized images is the only data
          # augmentation" (section 2.3).
          preprocess=f"resize_small({size}, 'bicubic')|random_crop({size})|"
          f'{floats}',
        ),
        test=dict(
          source='captions:test',
          split='test',
          preprocess=f"resize_small({size}, 'bicubic')|central_crop({size})|"
          f'{floats}',
        ),
        text=dict(tokenizer='openai'),
        workers=8,
        expected=dict(train_examples=PAIRS, image_shape=(size, size, 3)),
      ),
      batch_size=32_768,
      total='1ep' if variant.endswith('336') else '32ep',
      optimizer=dict(
        name='adamw',
        learning_rate=LEARNING_RATES[variant],
        b2=0.98 if is_vit else 0.999,
        epsilon=1e-6 if is_vit else 1e-8,
        weight_decay=0.2,
        # "All weights that are not gains or biases".
        weight_decay_rules=(('.*/(kernel|embedding)', 1.0),),
      ),
      schedule=dict(name='cosine', warmup='2000steps'),
      precision=dict(compute='bfloat16'),
      eval=dict(every='2000steps', batch_size=4096, retrieval='all'),
      checkpoint=dict(every='2000steps', keep=3),
    )
  )
