r"""DALL-E's discrete VAE: images of 256x256 to 32x32 codes out of 8,192.

Ramesh et al., "Zero-Shot Text-to-Image Generation", arXiv:2102.12092, section
2.1 and appendix A.2, and the released encoder and decoder. The argument is the
source of the images, with captions or with labels; those of the paper, 250
million, are not public. A number of them stands here so that the recipe can be
planned:

  python -m vit_jax.train --config=configs/dvae.py --check

With images of your own:

  python -m vit_jax.train --config=configs/dvae.py:shards:DIR --workdir=DIR \
    --config.data.expected.train_examples=N

What keeps the codebook from collapsing is the weight of the KL divergence, and
a temperature that falls along a cosine: along a line, training diverges.

Expected: the paper gives no figure of the reconstructions alone.
Cost by formula (3 forward passes an image): 1.74 TFLOP an image, 2,700
exaFLOP in all. By the TPU's compiler, on a v3-8 with what the plan chooses
(mesh data=8, optimizer.accumulate=4): 12.4 GiB a core, 3.74 s a step, 48 % of
the peak; 130 days, 1,040 TPU-core-days. To know that takes 11 minutes of one
core:

  python -m vit_jax.plan --config=configs/dvae.py --topology=v3-8
"""

from ml_collections import ConfigDict

VARIANTS = ('shards:data/pairs',)


def get_config(source: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    source: of the images, see the top of this file.
  """
  if ':' not in source:
    raise ValueError(
      f'{source!r} is no source of images, such as {VARIANTS[0]} or folder:DIR'
    )
  return ConfigDict(
    dict(
      task=dict(
        name='discrete_vae',
        temperature='1 -> 1/16 over 150000steps',
        # Large enough for all codes to be used, and reached slowly: the noise
        # of the relaxation would empty the codebook early otherwise.
        kl_weight='0 -> 6.6 over 5000steps',
      ),
      # The sizes are the defaults.
      model=dict(
        name='discrete_vae',
        # A map of the first group is 32 MiB an image in bfloat16.
        remat='full',
      ),
      data=dict(
        train=dict(
          source=source,
          split='train',
          # The paper's listing 1.
          preprocess='square_crop(256, 288, 384)|flip_lr|value_range(0, 1)',
        ),
        test=dict(
          source=source,
          split='test',
          preprocess='resize_small(256)|central_crop(256)|value_range(0, 1)',
        ),
        expected=dict(train_examples=250_000_000, image_shape=(256, 256, 3)),
        # Of so many images from the web some are always damaged.
        max_broken=0.01,
      ),
      batch_size=512,
      total='3000000steps',
      optimizer=dict(
        name='adamw', learning_rate=1e-4, weight_decay=1e-4, average=0.999
      ),
      # To 1.25e-6.
      schedule=dict(name='cosine', over='1200000steps', final=0.0125),
      precision=dict(compute='bfloat16'),
      eval=dict(every='10000steps'),
      checkpoint=dict(every='10000steps'),
      log_every='100steps',
    )
  )
