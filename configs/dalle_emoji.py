r"""DALL-E on emoji: from a name to a drawing of 48x48 pixels, 12x12 codes.

Needs the discrete VAE of configs/dvae_emoji.py. The argument is where the
images are: a .tar.gz file, or the folder that it unpacks to. Of one style 693
drawings: animals, food, faces, places and activities; the test data are 45 that
are never trained on.

  python -m vit_jax.train --config=configs/dvae_emoji.py:data/emoji64.tar.gz \
    --workdir=runs/dvae_emoji
  python -m vit_jax.train --config=configs/dalle_emoji.py:data/emoji64.tar.gz \
    --workdir=runs/dalle_emoji
  python -m vit_jax.generate --workdir=runs/dalle_emoji --out=apples \
    --prompt='red apple' --count=16 --guidance=2 --top-p=0.8

Expected: it learns the drawings by heart (training loss 0.33), and names that
it has seen give pictures that everybody recognises. Of others it draws a face,
a cat or a clock where one was asked for, and little else; the loss of codes of
the test data is 2.8 at the first of five evaluations and 10.5 at the end. With
captions that hold keywords as well, of twice as many drawings, even names that
had been trained on gave the wrong picture after 50 epochs. README.md has scores
by the CLIP of configs/clip_emoji.py. (One run, seed 0.)
Cost: 0.89 GFLOP a pair in training, 25 minutes of one core; the discrete VAE 9.
"""

from ml_collections import ConfigDict

VARIANTS = ('data/emoji64.tar.gz',)
# Things that look like their names, unlike flags and symbols.
GROUPS = '^(activities|animals|food|smileys|travel)'


def get_config(path: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    path: of the images and their captions.
  """
  source = f'captions:{path} where style=twemoji, group~{GROUPS}'
  preprocess = 'resize(48)|value_range(0, 1)'
  return ConfigDict(
    dict(
      task=dict(
        name='text_to_image',
        image_codes='runs/dvae_emoji',
        # For guidance.
        caption_dropout=0.1,
      ),
      model=dict(
        name='dalle',
        text_vocabulary=2000,
        text_length=12,
        image_vocabulary=1024,
        # As in configs/dalle_shapes.py.
        code_width=16,
        grid=(12, 12),
        width=128,
        depth=4,
        mlp_dim=512,
        num_heads=4,
        patterns=('row', 'column', 'row', 'row'),
        last_pattern='convolutional',
      ),
      data=dict(
        train=dict(source=source, split='train', preprocess=preprocess),
        test=dict(source=source, split='test', preprocess=preprocess),
        # Names alone: in other forms of a caption words are at other places,
        # and each has to be learned at each.
        text=dict(without=',|emoji of'),
        expected=dict(train_examples=693, image_shape=(48, 48, 3)),
      ),
      # Small: the number of updates counts most.
      batch_size=16,
      total='75ep',
      optimizer=dict(
        name='adamw', learning_rate=1e-3, weight_decay=0.05, b2=0.96,
        clip_norm=1.0,
      ),
      schedule=dict(name='cosine', warmup='5%'),
      eval=dict(every='20%'),
      checkpoint=dict(every='10%'),
    )
  )  # fmt: skip
