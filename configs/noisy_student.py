r"""A student that learns from a teacher, on images that it sees disturbed.

Self-training with a noisy student (Xie et al., arXiv:1911.04252), with ViTs in
place of EfficientNets, or plain distillation. The argument is the kind, noisy
or plain, and after a comma the student's model (default B/16). The teacher is
a run of this package, or a released checkpoint, for the same classes:

  python -m vit_jax.train --config=configs/noisy_student.py:noisy,B/16 \
    --workdir=runs/student --config.task.teacher_path=runs/teacher

A noisy student sees images that RandAugment has changed and drops parts of
itself, and its teacher sees clean ones; it is as large as the teacher, or
larger, and becomes the next teacher. With --config.task.true_labels=0 it reads
no labels, so that any images will do, whatever classes they are put in, and
those with captions as well; the classes are the test data's. A plain student
sees what the teacher sees, mixed with each other, and learns its probabilities
at a temperature (Hinton et al., arXiv:1503.02531); it is smaller.

The argument fashion_mnist is a small run on a CPU whose teacher has seen
labels of a tenth of the images; the data lies in data/, or where a path after
a comma says:

  python -m vit_jax.train --config=configs/fashion_mnist.py \
    --workdir=runs/teacher --config.data.train.split='train[:10%]' \
    --config.data.expected.train_examples=6000 --config.total=20ep
  python -m vit_jax.train --config=configs/noisy_student.py:fashion_mnist \
    --workdir=runs/student --config.task.teacher_path=runs/teacher

Expected: 88.4 % on ImageNet, of an EfficientNet-L2 with 300 million images
without labels (the paper); of ViTs nothing is known. Of the small one, see the
README.
Cost: a forward pass of the teacher more than training with labels takes; the
small one takes four minutes on two CPU cores.
"""

from ml_collections import ConfigDict

KINDS = ('noisy', 'plain')
VARIANTS = ('noisy', 'plain,S/16', 'fashion_mnist,data/fashion-mnist')


def get_config(argument: str = 'noisy') -> ConfigDict:
  """Returns the configuration.

  Args:
    argument: KIND[,MODEL], or fashion_mnist[,DIRECTORY].
  """
  name, _, rest = argument.partition(',')
  if name == 'fashion_mnist':
    return _fashion_mnist(rest or 'data/fashion-mnist')
  if name not in KINDS:
    raise ValueError(
      f'{argument!r} is not understood; expected one of {", ".join(KINDS)} or '
      'fashion_mnist'
    )
  source = 'tfds:imagenet2012'
  clean = 'resize_small(256)|central_crop(224)|value_range(-1, 1)'
  task = dict(name='distillation', teacher_path='TEACHER')
  model = dict(name='vit', variant=rest or 'B/16')
  train = dict(source=source, split='train[:99%]')
  if name == 'noisy':
    # The labels of the labelled images count as much as the teacher.
    task |= dict(teacher_sees='view', targets='soft', true_labels=0.5)
    # A fifth of the last block, as in the paper, whose dropout of a half is of
    # the last layer alone: here it is of all.
    model |= dict(dropout=0.1, stochastic_depth=0.2)
    train |= dict(
      # Of the magnitude 27 that the paper has, posterize and solarize are left
      # without effect.
      preprocess=(
        'inception_crop(224)|flip_lr|randaugment(2, 27)|value_range(-1, 1)'
      ),
      second_view=clean,
    )
  else:
    task |= dict(temperature=2.0, mixup=0.5)
    train |= dict(preprocess='inception_crop(224)|flip_lr|value_range(-1, 1)')
  return ConfigDict(
    dict(
      task=task,
      model=model,
      data=dict(
        train=train,
        test=dict(source=source, split='validation', preprocess=clean),
        workers=16,
        expected=dict(
          train_examples=1_268_355, classes=1000, image_shape=(224, 224, 3)
        ),
      ),
      batch_size=4096,
      total='300ep',
      optimizer=dict(
        name='adamw', learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0
      ),
      schedule=dict(name='cosine', warmup='10000steps'),
      mesh=dict(data=-1),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='10ep'),
      checkpoint=dict(every='1ep'),
    )
  )


def _fashion_mnist(directory: str) -> ConfigDict:
  """Returns the run on Fashion-MNIST, which uses no labels."""
  source = f'idx:{directory}'
  return ConfigDict(
    dict(
      task=dict(
        name='distillation', teacher_path='TEACHER', teacher_sees='view'
      ),
      # That of fashion_mnist.py, and the noise.
      model=dict(
        name='vit',
        patch_size=4,
        width=96,
        depth=4,
        mlp_dim=192,
        num_heads=4,
        pooling='gap',
        position='sincos_2d',
        dropout=0.1,
        stochastic_depth=0.1,
      ),
      data=dict(
        train=dict(
          source=source,
          split='train',
          preprocess='random_crop(28, 2)|flip_lr|value_range(-1, 1)',
          second_view='value_range(-1, 1)',
        ),
        test=dict(source=source, split='test', preprocess='value_range(-1, 1)'),
        expected=dict(
          train_examples=60_000, classes=10, image_shape=(28, 28, 1)
        ),
      ),
      batch_size=64,
      total='2ep',
      optimizer=dict(
        name='muon', learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0
      ),
      schedule=dict(name='cosine', warmup='5%'),
      eval=dict(every='1ep', batch_size=512),
      checkpoint=dict(every='1ep'),
      log_every='50steps',
    )
  )
