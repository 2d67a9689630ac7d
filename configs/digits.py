r"""A small ViT on scikit-learn's handwritten digits: the first run.

1,797 real images of 8x8 pixels, split into 1,437 for training and 360 for
testing. Nothing is downloaded.

  python -m vit_jax.train --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the configuration."""
  return ConfigDict(
    dict(
      task=dict(name='classification', label_smoothing=0.1),
      model=dict(
        name='vit',
        patch_size=2,
        width=96,
        depth=4,
        mlp_dim=192,
        num_heads=4,
        pooling='gap',
        # Few images: without it the model learns them by heart.
        dropout=0.1,
      ),
      data=dict(
        train=dict(
          source='digits',
          split='train',
          # Digits may stand anywhere; shifts by a pixel teach that.
          preprocess='random_crop(8, padding=1)|value_range(-1, 1)',
        ),
        test=dict(
          source='digits', split='test', preprocess='value_range(-1, 1)'
        ),
      ),
      batch_size=128,
      total='100ep',
      optimizer=dict(
        name='adamw', learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0
      ),
      schedule=dict(name='cosine', warmup='5%'),
      eval=dict(every='10ep'),
      checkpoint=dict(every='25ep'),
      log_every='20steps',
    )
  )
