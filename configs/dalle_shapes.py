r"""DALL-E on drawn shapes: from a caption to pictures, in minutes.

Needs the discrete VAE of configs/dvae_shapes.py, which writes pictures in
codes. Scenes are drawn as they are needed, and the test captions have
combinations of colour and shape that are never trained on.

  python -m vit_jax.train --config=configs/dvae_shapes.py --workdir=runs/dvae
  python -m vit_jax.train --config=configs/dalle_shapes.py:runs/dvae \
    --workdir=runs/dalle
  python -m vit_jax.generate --workdir=runs/dalle --out=pictures \
    --prompt='a small red circle at the top left' --count=16

Expected, of 144 captions whose pairs of colour and shape are never trained on:
72 % of single pictures have size, colour, shape and place right, 83 % with
--guidance=2 --top-p=0.9, and of these 92 % of the best of 8 by the CLIP of
configs/clip_shapes.py. The codes can show 95.8 %. Of 144 captions of trained
pairs, 98 % of single pictures. (One run, seed 0; README.md has another.)
Without code_width, things get pieces of another colour or shape where the right
code was never seen with that colour. To choose it, four more pairs were held
out of short trainings on 4 x 4 codes around a thing: 25 % of these were right
without it, and 90 % with it.
Cost: 0.39 GFLOP a pair in training, three passes of the frozen encoder counted;
19 minutes of one core. With the discrete VAE (6) and the CLIP (18) that is 44.
"""

from ml_collections import ConfigDict

VARIANTS = ('runs/dvae',)


def get_config(image_codes: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    image_codes: workdir of the discrete VAE.
  """
  source = 'shapes:pixels=48'
  return ConfigDict(
    dict(
      task=dict(
        name='text_to_image', image_codes=image_codes, caption_dropout=0.1
      ),
      model=dict(
        name='dalle',
        text_vocabulary=587,
        text_length=12,
        image_vocabulary=512,
        # What codes look like is predicted: a text with a new pair of colour
        # and shape asks for codes that no text like it was seen with.
        code_width=16,
        grid=(12, 12),
        width=96,
        depth=3,
        mlp_dim=384,
        num_heads=3,
        patterns=('row', 'column'),
        last_pattern='convolutional',
      ),
      data=dict(
        train=dict(
          source=source, split='train', preprocess='value_range(0, 1)'
        ),
        test=dict(source=source, split='test', preprocess='value_range(0, 1)'),
      ),
      batch_size=64,
      total='1200steps',
      optimizer=dict(
        name='adamw', learning_rate=3e-3, weight_decay=0.05, b2=0.96,
        clip_norm=1.0,
      ),
      schedule=dict(name='cosine', warmup='5%'),
      eval=dict(every='400steps'),
      checkpoint=dict(every='400steps'),
    )
  )  # fmt: skip
