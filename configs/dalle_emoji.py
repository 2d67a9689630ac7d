r"""DALL-E on emoji: from a name to a drawing of 64x64 pixels, 16x16 codes.

Needs the discrete VAE of configs/dvae_emoji.py. The argument is where the
images are: a .tar.gz file, or the folder that it unpacks to. Its captions are
a name, the name with the style of drawing, and the name with keywords; those of
the test data are of concepts that are never trained on.

  python -m vit_jax.train --config=configs/dvae_emoji.py:data/emoji64.tar.gz \
    --workdir=runs/dvae_emoji
  python -m vit_jax.train --config=configs/dalle_emoji.py:data/emoji64.tar.gz \
    --workdir=runs/dalle_emoji
  python -m vit_jax.generate --workdir=runs/dalle_emoji --out=pictures \
    --prompt='a noto emoji of red apple' --count=16 --top-k=0.2

Expected: not known yet.
Cost by formula (3 forward passes a pair, of the frozen encoder as well): 6.3
GFLOP a pair, 980 TFLOP in all.
"""

from ml_collections import ConfigDict

VARIANTS = ('data/emoji64.tar.gz',)


def get_config(path: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    path: of the images and their captions.
  """
  source = f'captions:{path}'
  return ConfigDict(
    dict(
      task=dict(
        name='text_to_image',
        image_codes='runs/dvae_emoji',
        caption_dropout=0.1,
      ),
      model=dict(
        name='dalle',
        text_vocabulary=3000,
        # Long enough for a name and its keywords.
        text_length=24,
        image_vocabulary=512,
        grid=(16, 16),
        width=256,
        depth=4,
        mlp_dim=1024,
        num_heads=4,
        patterns=('row', 'column', 'row', 'row'),
        last_pattern='convolutional',
        # 8,000 drawings are few for what it can learn by heart.
        dropout=0.1,
      ),
      data=dict(
        train=dict(
          source=source, split='train', preprocess='value_range(0, 1)'
        ),
        test=dict(source=source, split='test', preprocess='value_range(0, 1)'),
        text=dict(bpe_dropout=0.1),
        expected=dict(train_examples=7_769, image_shape=(64, 64, 3)),
      ),
      batch_size=32,
      total='20ep',
      optimizer=dict(
        name='adamw', learning_rate=1e-3, weight_decay=0.05, b2=0.96,
        clip_norm=1.0,
      ),
      schedule=dict(name='cosine', warmup='5%'),
      eval=dict(every='2ep'),
      checkpoint=dict(every='4ep'),
    )
  )  # fmt: skip
