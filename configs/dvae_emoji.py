r"""A discrete VAE on emoji: 48x48 pixels to 12x12 codes.

The 1,873 drawings of one style, of which 1,726 are for training. The argument
is where they are: a .tar.gz file, or the folder that it unpacks to.

  python -m vit_jax.train --config=configs/dvae_emoji.py:data/emoji64.tar.gz \
    --workdir=runs/dvae_emoji

The first stage of configs/dalle_emoji.py. What keeps the codebook from
collapsing: white is 0 to the encoder, so that codes follow what things look
like from the start; the weight of the KL divergence begins high and falls, so
that no code is sure before the decoder tells codes apart; and the temperature
falls more slowly than it. On drawn shapes, with the released initialisation,
white at 0.9 and the paper's weight from 0, one to seven codes were left after
300 steps.

Expected: of 99 drawings of concepts that are never trained on, an absolute
error of 0.040 and a squared one of 0.0053 (pixels are from 0 to 1); 106 codes
in use by perplexity (one run, seed 0).
Cost: 0.38 GFLOP an image in training; 40 minutes of one core.
"""

from ml_collections import ConfigDict

VARIANTS = ('data/emoji64.tar.gz',)


def get_config(path: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    path: of the images and their captions.
  """
  source = f'captions:{path} where style=twemoji'
  preprocess = 'resize(48)|value_range(0, 1)'
  return ConfigDict(
    dict(
      task=dict(
        name='discrete_vae',
        temperature='1 -> 1/16 over 85%',
        kl_weight='10 -> 0.2 over 40% exponential',
        likelihood='logit_normal',
      ),
      model=dict(
        name='discrete_vae',
        # A code for 4 x 4 pixels: lines are 2 or 3 wide.
        patch_size=4,
        groups=1,
        stem_size=3,
        width=128,
        code_width=128,
        vocabulary_size=512,
        pixel_mean=0.9,
        pixel_std=0.3,
        codebook_std=1.0,
      ),
      data=dict(
        train=dict(source=source, split='train', preprocess=preprocess),
        test=dict(source=source, split='test', preprocess=preprocess),
        expected=dict(train_examples=1_726, image_shape=(48, 48, 3)),
      ),
      batch_size=32,
      total='4000steps',
      optimizer=dict(
        name='adamw', learning_rate=2e-3, weight_decay=1e-4, clip_norm=1.0
      ),
      schedule=dict(name='cosine', warmup='5%', final=0.01),
      eval=dict(every='1000steps'),
      checkpoint=dict(every='1000steps'),
      log_every='100steps',
    )
  )
