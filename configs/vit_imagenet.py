r"""ViT on ImageNet-1k from scratch, as in the ViT paper.

Dosovitskiy et al., arXiv:2010.11929, section 4.1 and appendix B.1, table 3
(row "ImageNet"). The argument is the model.

  python -m vit_jax.train --config=configs/vit_imagenet.py:B/16 --workdir=DIR

The paper used so little regularisation that small models win; to get the most
out of ImageNet-1k alone, see vit_s16_90ep.py and augreg.py.

Expected: top-1 on the validation set at 224 px (the author,
google-research/vision_transformer issue 62), and after fine-tuning at 384 px
(the paper's table 5):

  B/16 74.79, 77.91    B/32 69.19, 73.38
  L/16 72.59, 76.53    L/32 66.90, 71.16

By the TPU's compiler (`python -m vit_jax.plan --topology=v3-8`): memory of a
core, seconds a step and TPU-core-days. The mesh is `data` alone: every core
holds the whole state.

  v3-8   B/16   7.8 GiB  1.75 s  15        B/32  15.0 GiB  0.47 s   4.0
         L/16  14.5 GiB  5.63 s  48        L/32  15.0 GiB  1.47 s  12.6
  v3-32  B/16   9.7 GiB  0.45 s  15        with optimizer.accumulate=2
         L/16  14.1 GiB  1.44 s  50        with optimizer.accumulate=4

Cost by formula (3 forward passes an image, 300 epochs), in exaFLOP: B/16 41,
B/32 10, L/16 143, L/32 35. `--check` prints it an image.
"""

from ml_collections import ConfigDict

# Each with its micro-batches, so that all fits the 16 GB of a TPU v3 core when
# there are 8 of them; with more, fewer are faster.
MODELS = {'B/16': 8, 'B/32': 1, 'L/16': 16, 'L/32': 4}
VARIANTS = tuple(MODELS)


def get_config(variant: str = 'B/16') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the model, one of VARIANTS.
  """
  if variant not in MODELS:
    raise ValueError(f'{variant!r} is not one of {", ".join(MODELS)}')
  source = 'tfds:imagenet2012'
  return ConfigDict(
    dict(
      # The paper does not name the loss. An author names sigmoid for
      # ImageNet-21k (google-research/vision_transformer issue 34).
      task=dict(name='classification', loss_function='sigmoid'),
      model=dict(
        name='vit',
        variant=variant,
        # "An MLP with one hidden layer at pre-training time" (section 3.1).
        representation_size=-1,
        dropout=0.1,
        # log(1 / 1000): starts where each class is as likely as any other.
        head_bias=-6.9,
      ),
      data=dict(
        train=dict(
          source=source,
          # The rest is there to choose settings with (data.test.split =
          # 'train[99%:]'), so that validation stays a test set.
          split='train[:99%]',
          preprocess='inception_crop(224)|flip_lr|value_range(-1, 1)',
        ),
        test=dict(
          source=source,
          split='validation',
          preprocess='resize_small(256)|central_crop(224)|value_range(-1, 1)',
        ),
        # A v3 host has to decode some thousand images a second.
        workers=16,
        expected=dict(
          # 99 % of 1,281,167.
          train_examples=1_268_355,
          classes=1000,
          image_shape=(224, 224, 3),
        ),
      ),
      batch_size=4096,
      total='300ep',
      optimizer=dict(
        name='adamw',
        learning_rate=3e-3,
        # High, and times the learning rate: each step takes off 9e-4.
        weight_decay=0.3,
        # On ImageNet only (table 3's caption).
        clip_norm=1.0,
        accumulate=MODELS[variant],
      ),
      schedule=dict(name='cosine', warmup='10000steps'),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='5ep'),
      checkpoint=dict(every='5ep'),
    )
  )
