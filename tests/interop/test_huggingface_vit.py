"""Outputs equal those of transformers' ViT in torch, in both directions.

pip install -e .[interop] && pytest -m interop tests/interop
"""

import pathlib

import flax
import jax
import numpy as np
import pytest

from vit_jax import released
from vit_jax.models.vit import ViT

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
pytestmark = pytest.mark.interop

SIZES = dict(
  hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
  intermediate_size=80, patch_size=8, num_labels=7,
)  # fmt: skip


def noisy(model):
  """Puts noise on every tensor, so that nothing cancels."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for value in model.parameters():
      value += 0.2 * torch.randn(value.shape, generator=generator)
  return model.eval()


def outputs(path, image):
  """Returns what the model of a checkpoint computes here."""
  found = released.read(path)
  fields = {key: value for key, value in found.model.items() if key != 'name'}
  model = ViT(num_classes=found.num_classes, **fields)
  params = flax.traverse_util.unflatten_dict(found.params, sep='/')
  logits, out = jax.jit(model.apply)({'params': params}, image)
  return found, np.asarray(logits), np.asarray(out['encoded'])


def assert_equal(path, model, shape):
  """Compares a checkpoint with transformers' model on random images."""
  image = np.random.default_rng(1).normal(size=(4, *shape, 3)).astype('f4')
  image[-1] *= 1e-3  # Nearly one colour: shows a wrong epsilon.
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    theirs = model(pixels, output_hidden_states=True)
    encoded = model.vit(pixels).last_hidden_state.numpy()
  found, logits, ours = outputs(path, image)
  np.testing.assert_allclose(ours, encoded, atol=1e-4, rtol=0)
  np.testing.assert_allclose(logits, theirs.logits.numpy(), atol=1e-4, rtol=0)
  return found


@pytest.mark.parametrize(
  'activation,epsilon,shape',
  [
    ('gelu', 1e-12, (32, 32)),
    ('gelu_pytorch_tanh', 1e-6, (24, 40)),
    ('quick_gelu', 1e-5, (32, 32)),
  ],
)
def test_both_directions(activation, epsilon, shape, tmp_path):
  config = transformers.ViTConfig(
    image_size=list(shape),
    hidden_act=activation,
    layer_norm_eps=epsilon,
    id2label={i: f'class {i}' for i in range(7)},
    **{k: v for k, v in SIZES.items() if k != 'num_labels'},
  )
  model = noisy(transformers.ViTForImageClassification(config))
  model.save_pretrained(tmp_path / 'theirs')
  found = assert_equal(tmp_path / 'theirs', model, shape)
  assert found.class_names[3] == 'class 3'

  released.write(tmp_path / 'ours', found, 'huggingface')
  again, missing = transformers.ViTForImageClassification.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(missing.values())
  for name, value in model.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name
  assert_equal(tmp_path / 'ours', again.eval(), shape)
  assert again.config.id2label == config.id2label


def test_models_of_google_run_in_transformers(tmp_path):
  golden = GOLDENS / 'vit_token_norep.npz'
  found = released.read(golden, grid=(4, 6))
  released.write(tmp_path / 'x', found, 'huggingface')
  model = transformers.ViTForImageClassification.from_pretrained(tmp_path / 'x')
  arrays = released.tensors(golden)
  pixels = torch.from_numpy(arrays['input/image'].transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    logits = model.eval()(pixels).logits.numpy()
  np.testing.assert_allclose(logits, arrays['output/logits'], atol=1e-4, rtol=0)
  # Its image processor prepares images as `preprocess` says.
  image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
  processor = transformers.ViTImageProcessorPil.from_pretrained(tmp_path / 'x')
  theirs = np.asarray(processor(image)['pixel_values'][0]).transpose(1, 2, 0)
  np.testing.assert_allclose(theirs, image / 127.5 - 1, atol=1e-6)
