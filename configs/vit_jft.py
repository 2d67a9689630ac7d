r"""ViT, hybrids and ResNets on JFT-300M, or whatever huge data set you have.

Dosovitskiy et al., arXiv:2010.11929, appendix B.1, table 3 (rows "JFT-300M").
The argument is the row: the model, and the length where there are two. JFT is
Google's own; its size stands here so that the recipe can be planned:

  python -m vit_jax.train --config=configs/vit_jft.py:H/14 --check

With data of your own, prepared for TensorFlow Datasets as NAME:

  python -m vit_jax.train --config=configs/vit_jft.py:B/16 --workdir=DIR \
    --config.data.train.source=tfds:NAME --config.data.test.source=tfds:NAME \
    --config.data.expected.train_examples=N --config.data.expected.classes=C

A record has one label here, while images of JFT have 1.26 on average.

Expected: ImageNet top-1 after fine-tuning at 384 px (the paper's table 5):
B/16 84.15, B/32 80.73, L/16 87.12, L/32 84.37, H/14 88.04.
Cost in exaFLOP (the paper's table 6): B/32 55, B/16 224, L/32 196, L/16 783
and for 14 epochs 1567, H/14 4262, R50+B/32 106, R50+B/16 274, R50+L/32 246,
R50+L/16 of 14 epochs 1668, R50x1 50, R152x2 563. In TPUv3-core-days (table
2): L/16 of 14 epochs 680, H/14 2500.

H/14 by the TPU's compiler (`python -m vit_jax.plan`): on a v3-8, its state
split over all cores, 10.9 GiB a core, 17.8 s a step, 1711 core-days; on a v3-32
with mesh.data=4, mesh.fsdp=8 and optimizer.accumulate=8, 10.6 GiB, 4.38 s, 1679
core-days.

The paper's studies at its sizes; configs/rivals.py has them at a size for a
CPU, and how to draw them. By the TPU's compiler a run of B/16 takes 84
core-days of a v3-8, whose 7 epochs are 517,822 steps; R50+B/16 and R152x2 take
some 130 and 260, by arithmetic at 40 % of the peak.

  Accuracy against the size of the data (figure 4), 4 runs for each model:
    python -m vit_jax.sweep --config=configs/vit_jft.py:B/16 --run \
      --workdir=DIR --config.total=517822steps --set \
      'config.data.train.split=train[:9M],train[:30M],train[:90M],train'
    with the numbers written out, and data.expected.train_examples=None.
  Accuracy against compute (figure 5): every argument, the costs above.
  Class token against average (figure 9), 4 runs, 336 core-days:
    --set config.model.pooling=token,gap
    --set config.optimizer.learning_rate=8e-4,3e-4
  Position embeddings (table 8), 9 runs, 755 core-days:
    --set config.model.position=learned,learned_2d
    --set config.model.position_at=stem,every_layer,shared
    and none, and relative at every_layer and shared. The paper's 5-shot
    accuracy on ImageNet: none 61.4 %, and 64.0 to 64.3 % for all of the others.
"""

from ml_collections import ConfigDict

# (model, length, peak learning rate, micro-batches). With these micro-batches
# the activations should fit the 16 GB of a TPU v3 core when there are 8 of
# them (those of hybrids and ResNets are guesses); with more, fewer are faster.
RECIPES = {
  'B/16': ('B/16', '7ep', 8e-4, 8),
  'B/32': ('B/32', '7ep', 8e-4, 1),
  'L/32': ('L/32', '7ep', 6e-4, 4),
  'L/16': ('L/16', '7ep', 4e-4, 16),
  'L/16,14ep': ('L/16', '14ep', 4e-4, 16),
  'H/14': ('H/14', '14ep', 3e-4, 32),
  'R50+B/32': ('R50+B/32', '7ep', 8e-4, 4),
  'R50+B/16': ('R50+B/16', '7ep', 8e-4, 4),
  'R50+L/32': ('R50+L/32', '7ep', 2e-4, 8),
  'R50+L/16': ('R50+L/16', '7ep', 4e-4, 16),
  'R50+L/16,14ep': ('R50+L/16', '14ep', 4e-4, 16),
  'R50x1': ('R50x1', '7ep', 1e-3, 4),
  'R50x2': ('R50x2', '7ep', 1e-3, 8),
  'R101x1': ('R101x1', '7ep', 8e-4, 8),
  'R152x1': ('R152x1', '7ep', 6e-4, 8),
  'R152x2': ('R152x2', '7ep', 6e-4, 16),
}
VARIANTS = tuple(RECIPES)


def get_config(variant: str = 'B/16') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the row of table 3, one of VARIANTS.
  """
  if variant not in RECIPES:
    raise ValueError(f'{variant!r} is not one of {"; ".join(RECIPES)}')
  model, total, learning_rate, micro_batches = RECIPES[variant]
  source = 'tfds:jft'
  # The state of H/14, 10 GB, is more than a TPU v3 core should hold.
  split_state = model == 'H/14'
  # About log(1 / 18291): each class starts as unlikely as it is.
  fields = dict(name='vit', variant=model, head_bias=-10.0)
  if 'x' in model:
    fields['name'] = 'resnet'
  else:
    # Fine-tuning leaves this layer out, as the paper does.
    fields['representation_size'] = -1
  return ConfigDict(
    dict(
      # Labels are many, noisy and not exclusive.
      task=dict(name='classification', loss_function='sigmoid'),
      model=fields,
      data=dict(
        train=dict(
          source=source,
          split='train',
          preprocess='inception_crop(224)|flip_lr|value_range(-1, 1)',
        ),
        test=dict(
          source=source,
          split='test',
          preprocess='resize_small(256)|central_crop(224)|value_range(-1, 1)',
        ),
        # A v3 host has to decode some thousand images a second.
        workers=16,
        # Among hundreds of millions of images some are broken.
        max_broken=0.001,
        expected=dict(
          train_examples=303_000_000,
          classes=18_291,
          image_shape=(224, 224, 3),
        ),
      ),
      batch_size=4096,
      total=total,
      optimizer=dict(
        name='adamw',
        learning_rate=learning_rate,
        # Times the learning rate; high, for the sake of transfer.
        weight_decay=0.1,
        accumulate=micro_batches,
      ),
      schedule=dict(
        name='linear',
        warmup='10000steps',
        # Ends at a learning rate of 1e-5, known of ImageNet-21k.
        final=1e-5 / learning_rate,
      ),
      mesh=dict(data=1, fsdp=-1) if split_state else dict(data=-1),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      # An epoch has 74,000 steps: report more often.
      eval=dict(every='10000steps'),
      checkpoint=dict(every='5000steps'),
    )
  )
