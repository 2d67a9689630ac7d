r"""ViT on ImageNet-21k, as in the ViT paper: the released checkpoints.

Dosovitskiy et al., arXiv:2010.11929, appendix B.1, table 3 (rows
"ImageNet-21k"), completed by an author in google-research/vision_transformer
issues 2 and 34: loss, bias of the head, representation layer, final learning
rate. The argument is the model, and for the large ones the length.

  python -m vit_jax.train --config=configs/vit_imagenet21k.py:B/16 \
    --workdir=DIR

ImageNet-21k is not in TensorFlow Datasets' catalogue: prepare your copy as
`imagenet21k` with the one split `full`, or give a folder of class folders
(--config.data.train.source=folder:DIR with the split `all[51200:]`, the same
for test), and correct config.data.expected to what your copy has.

Expected: top-1 on held-out images of ImageNet-21k after 90 epochs (the author,
issue 62), and on ImageNet after fine-tuning at 384 px (the paper's table 5):

  B/16 47.88, 83.97    B/32 44.04, 81.28
  L/16 49.90, 85.15    L/32 45.42, 80.99

The author's copy was deduplicated, about 12.4 million images (issue 28).
Cost by formula (3 forward passes an image) for 90 epochs of the 14.1 million
images, in exaFLOP: B/16 137, B/32 34, L/16 478, L/32 118.
"""

from ml_collections import ConfigDict

# (model, length, micro-batches). With these the activations should fit the
# 16 GB of a TPU v3 core when there are 8 of them; with more, fewer are faster.
RECIPES = {
  'B/16': ('B/16', '90ep', 8),
  'B/32': ('B/32', '90ep', 1),
  'L/16': ('L/16', '90ep', 16),
  'L/32': ('L/32', '90ep', 4),
  'L/16,30ep': ('L/16', '30ep', 16),
  'L/32,30ep': ('L/32', '30ep', 4),
}
VARIANTS = tuple(RECIPES)
LEARNING_RATE = 1e-3


def get_config(variant: str = 'B/16') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the model and for large ones the length, one of VARIANTS.
  """
  if variant not in RECIPES:
    raise ValueError(f'{variant!r} is not one of {"; ".join(RECIPES)}')
  model, total, micro_batches = RECIPES[variant]
  source = 'tfds:imagenet21k'
  return ConfigDict(
    dict(
      # Classes contain each other (dog, animal): none rules out another.
      task=dict(name='classification', loss_function='sigmoid'),
      model=dict(
        name='vit',
        variant=model,
        # Fine-tuning leaves this layer out, as the paper does.
        representation_size=-1,
        dropout=0.1,
        # About log(1 / 21843): each class starts as unlikely as it is.
        head_bias=-10.0,
      ),
      data=dict(
        train=dict(
          source=source,
          # Held out are 51,200 images, as in big_vision.
          split='full[51200:]',
          preprocess='inception_crop(224)|flip_lr|value_range(-1, 1)',
        ),
        test=dict(
          source=source,
          split='full[:25600]',
          preprocess='resize_small(256)|central_crop(224)|value_range(-1, 1)',
        ),
        # A v3 host has to decode some thousand images a second.
        workers=16,
        # Every copy of so many files has a few damaged ones.
        max_broken=0.001,
        expected=dict(
          # 14,197,122 of the release of fall 2011, less those held out.
          train_examples=14_145_922,
          classes=21_843,
          image_shape=(224, 224, 3),
        ),
      ),
      batch_size=4096,
      total=total,
      optimizer=dict(
        name='adamw',
        learning_rate=LEARNING_RATE,
        # Times the learning rate: each step takes off 3e-5.
        weight_decay=0.03,
        accumulate=micro_batches,
      ),
      schedule=dict(
        name='linear',
        warmup='10000steps',
        # Ends at a learning rate of 1e-5.
        final=1e-5 / LEARNING_RATE,
      ),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='1ep'),
      checkpoint=dict(every='1ep'),
    )
  )
