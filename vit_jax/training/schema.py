"""What a configuration can say; see `vit_jax.config` for the rules.

Each section is the signature of what uses it. Those that no other file owns
are here.
"""

import dataclasses
import math
from typing import Any, Literal

from vit_jax.config import Duration, Field, OneOf, fields_of
from vit_jax.evaluation import few_shot
from vit_jax.models import clip, dalle, discrete_vae
from vit_jax.models.mixer import Mixer
from vit_jax.models.modified_resnet import ModifiedResNet
from vit_jax.models.resnet import ResNet
from vit_jax.models.text import TextTransformer
from vit_jax.models.vit import ViT
from vit_jax.tasks.bag_of_words import BagOfWords
from vit_jax.tasks.byol import BYOL
from vit_jax.tasks.captioning import Captioning
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.contrastive import Contrastive
from vit_jax.tasks.discrete_vae import DiscreteVae
from vit_jax.tasks.distillation import Distillation
from vit_jax.tasks.masked_patches import MaskedPatches
from vit_jax.tasks.text_to_image import TextToImage
from vit_jax.training import mesh, optimizer, schedule

# Each makes a model; for most it is the module itself.
MODELS = {
  'clip': clip.make,
  'dalle': dalle.DallE,
  'discrete_vae': discrete_vae.DiscreteVae,
  'mixer': Mixer,
  'modified_resnet': ModifiedResNet,
  'resnet': ResNet,
  'vit': ViT,
}
TASKS = {
  'bag_of_words': BagOfWords,
  'byol': BYOL,
  'captioning': Captioning,
  'classification': Classification,
  'contrastive': Contrastive,
  'discrete_vae': DiscreteVae,
  'distillation': Distillation,
  'masked_patches': MaskedPatches,
  'text_to_image': TextToImage,
}


@dataclasses.dataclass(frozen=True)
class Split:
  """`config.data.train` and `config.data.test`."""

  # Where records come from: 'digits', 'idx:DIR', 'folder:DIR', 'tfds:NAME', or
  # one of `vit_jax.data.captions`.
  source: str
  # Which of them, such as 'train[:99%]' or 'train+validation'.
  split: str
  # What is done to each, such as 'resize(224)|value_range(-1, 1)'.
  preprocess: str
  # What is done for the second view, where the task reads two of each image;
  # '' for the same.
  second_view: str = ''


@dataclasses.dataclass(frozen=True)
class Text:
  """`config.data.text`: captions, for tasks that read them.

  Records with none that passes are left out, see `caption_filter`.
  """

  # A file of merges, or 'openai' for those of the released models; '' makes
  # some of the captions of training.
  tokenizer: str = ''
  # Texts with {} where a caption goes, of which training takes any and
  # evaluation the first; () for captions as they are.
  templates: tuple = ()
  # Chance of each merge of the tokenizer to be left out in training.
  bpe_dropout: float = 0.0
  # Whether a caption comes once a batch at most.
  unique: bool = False
  # Least and largest number of characters.
  characters: tuple = (0, math.inf)
  # Least share of Latin letters.
  latin: float = 0.0
  # A regular expression; captions that it is found in are left out.
  without: str = ''
  # Largest ratio of an image's longer side to the shorter one.
  aspect: float = math.inf


@dataclasses.dataclass(frozen=True)
class Expected:
  """`config.data.expected`: what the data should turn out to be.

  With it a run can be planned where the data is not, and data that differs is
  an error. None asks the data.
  """

  train_examples: int | None = None
  classes: int | None = None
  # Height, width, channels after preprocessing.
  image_shape: tuple | None = None


@dataclasses.dataclass(frozen=True)
class Precision:
  """`config.precision`; parameters and their updates are always float32."""

  # Of activations and matrix products; float16 with a scale for the gradients
  # of each residual branch, see `vit_jax.models.gradient_scale`. Products of
  # float32 are rounded by a TPU (bfloat16) and a GPU (TensorFloat-32) unless
  # the environment has JAX_DEFAULT_MATMUL_PRECISION=highest.
  compute: Literal['float32', 'bfloat16', 'float16'] = 'float32'
  # Of attention weights; bfloat16 saves a quarter of a ViT's memory.
  softmax: Literal['float32', 'bfloat16'] = 'float32'


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """`config.eval.zero_shot`: classification by the names of classes."""

  # Of labels, such as 'folder:DIR'; '' does not evaluate.
  source: str = ''
  split: str = 'test'
  # Names and templates: a file or one of `vit_jax.evaluation.prompts`; '' puts
  # the classes' own names into `config.data.text.templates`.
  prompts: str = ''


@dataclasses.dataclass(frozen=True)
class Checkpointing:
  """`config.checkpoint`."""

  every: Duration
  # So many of the newest are kept.
  keep: int = 2
  # A metric such as 'test/accuracy' whose best checkpoint is kept as well.
  best: str = ''


@dataclasses.dataclass(frozen=True)
class Init:
  """`config.init`: where parameters start; only a path can stand for it."""

  # The workdir of another run, or a released checkpoint; '' for fresh ones.
  path: str = ''
  # Regular expressions of parameters that start fresh all the same, or that
  # are there but not wanted.
  fresh: tuple = ()
  # Only this part of it, such as 'image' of a CLIP; '' for all.
  part: str = ''
  # Where in this model that goes, such as 'image' of a CLIP; '' for the top.
  into: str = ''
  # Rows and columns of its position embeddings, where it does not tell.
  grid: tuple = ()
  # What the tensors of a released CLIP do not tell: its activation, and how
  # many heads its towers have where these are not of 64 channels.
  activation: str = ''
  image_heads: int | None = None
  text_heads: int | None = None
  # How position embeddings are made to fit other rows and columns: as the
  # released fine-tuning code does, or as image resizing does.
  resize: Literal['align_corners', 'half_pixel'] = 'align_corners'


# What the program gives to models and to tasks; no keys of theirs.
_TO_MODELS = ('num_classes', 'dtype', 'softmax_dtype', 'parent')
_TO_TASKS = (
  'model', 'class_names', 'image_shape', 'tokenizer', 'to_steps', 'frozen',
  'reads_codes',
)  # fmt: skip


def _keys(user: Any, *supplied: str) -> dict[str, Field]:
  """Returns the keys of a model that is part of another."""
  keys = fields_of(user)
  return {
    name: keys[name]
    for name in keys
    if name not in ('name', *_TO_MODELS, *supplied)
  }


_CLIP = {
  'image': OneOf(clip.IMAGE_TOWERS, supplied=_TO_MODELS),
  'text': _keys(TextTransformer),
  **_keys(clip.CLIP, 'image', 'text'),
}


def text_sizes(model: Any) -> tuple[int, int]:
  """Returns vocabulary and length of the texts that a model reads."""
  if model.name == 'dalle':
    return model.text_vocabulary, model.text_length
  return model.text.vocabulary_size, model.text.length


SCHEMA = {
  'task': OneOf(TASKS, supplied=_TO_TASKS),
  'model': OneOf({**MODELS, 'clip': _CLIP}, supplied=_TO_MODELS),
  'data': {
    'train': Split,
    'test': Split,
    # Names of the only classes to use, in the order of their labels; () uses
    # all. Training without labels takes all images, and these for testing.
    'classes': Field(tuple, ()),
    'text': Text,
    # Processes that read ahead; 0 reads in threads of the main one.
    'workers': Field(int, 0),
    # Share of records that may be broken before the run stops.
    'max_broken': Field(float, 0.0),
    'expected': Expected,
  },
  # Examples of one step, over all devices.
  'batch_size': Field(int),
  'total': Field(Duration),
  'optimizer': OneOf(optimizer.OPTIMIZERS, shared=optimizer.Settings),
  'schedule': OneOf(schedule.SCHEDULES),
  'mesh': mesh.Settings,
  'precision': Precision,
  'eval': {
    'every': Field(Duration),
    # None: as in training.
    'batch_size': Field(int | None, None),
    'few_shot': few_shot.Settings,
    # Finding images by text and back: by the first caption of each, or all.
    'retrieval': Field(Literal['off', 'first', 'all'], 'off'),
    'zero_shot': ZeroShot,
  },
  'checkpoint': Checkpointing,
  'log_every': Field(Duration, '50steps'),
  # Project at Weights & Biases that figures go to as well; '' for none.
  'wandb': Field(str, ''),
  'init': Init,
  # Initialisation, order of the data, augmentation and dropout follow it.
  'seed': Field(int, 0),
}
