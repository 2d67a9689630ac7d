"""Outputs equal those of transformers' CLIP in torch, in both directions.

pip install -e .[interop] && pytest -m interop tests/interop
"""

import pathlib

import flax
import jax
import numpy as np
import pytest

from vit_jax import released
from vit_jax.models import clip

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
pytestmark = pytest.mark.interop

TEXT = dict(
  hidden_size=32, intermediate_size=72, num_hidden_layers=3,
  num_attention_heads=4, vocab_size=60, max_position_embeddings=10,
  bos_token_id=58, eos_token_id=59, pad_token_id=0,
)  # fmt: skip
VISION = dict(
  hidden_size=48, intermediate_size=80, num_hidden_layers=2,
  num_attention_heads=3, image_size=32, patch_size=8,
)  # fmt: skip


def noisy(model):
  """Puts noise on every tensor, so that nothing cancels."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for value in model.parameters():
      value += 0.2 * torch.randn(value.shape, generator=generator)
  return model.eval()


def inputs():
  """Returns images, of which the last is nearly grey, and texts."""
  rng = np.random.default_rng(1)
  image = rng.normal(size=(4, 32, 32, 3)).astype('f4')
  image[-1] *= 1e-3  # Shows a wrong epsilon.
  text = rng.integers(1, 58, (4, 10))
  text[:, 0] = 58
  for row, end in enumerate((3, 6, 9, 5)):
    text[row, end], text[row, end + 1 :] = 59, 0
  return image, text


def projected(path, image, text):
  """Returns image and text features of a checkpoint, of any length."""
  found = released.read(path)
  fields = {key: value for key, value in found.model.items() if key != 'name'}
  params = flax.traverse_util.unflatten_dict(found.params, sep='/')
  model = clip.make(**fields)
  (images, texts), out = jax.jit(model.apply)({'params': params}, image, text)
  logits = np.exp(out['logit_scale']) * images @ texts.T
  return found, logits, out['image']['projected'], out['text']['projected']


def assert_equal(path, model):
  """Compares a checkpoint with transformers' model."""
  image, text = inputs()
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  ids = torch.from_numpy(text)
  with torch.no_grad():
    logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    images = model.visual_projection(model.vision_model(pixels).pooler_output)
    texts = model.text_projection(model.text_model(ids).pooler_output)
  found, *ours = projected(path, image, text)
  for value, expected in zip(ours, (logits, images, texts)):
    np.testing.assert_allclose(value, expected.numpy(), atol=1e-4, rtol=0)
  return found


@pytest.mark.parametrize(
  'activation,epsilon,end',
  [
    ('quick_gelu', 1e-5, 59),
    ('gelu', 1e-6, 59),
    # As configs of old say it: where the highest id is.
    ('gelu_pytorch_tanh', 1e-5, 2),
  ],
)
def test_both_directions(activation, epsilon, end, tmp_path):
  tower = dict(hidden_act=activation, layer_norm_eps=epsilon)
  config = transformers.CLIPConfig(
    text_config={**TEXT, **tower, 'eos_token_id': end},
    vision_config={**VISION, **tower},
    projection_dim=24,
  )
  model = noisy(transformers.CLIPModel(config))
  model.save_pretrained(tmp_path / 'theirs')
  found = assert_equal(tmp_path / 'theirs', model)

  released.write(tmp_path / 'ours', found, 'huggingface')
  again, missing = transformers.CLIPModel.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(missing.values())
  for name, value in model.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name
  assert_equal(tmp_path / 'ours', again.eval())


def test_models_of_openai_run_in_transformers(tmp_path):
  golden = GOLDENS / 'clip_vit_head64.npz'
  found = released.read(golden, told={'activation': 'quick_gelu'})
  released.write(tmp_path / 'x', found, 'huggingface')
  model = transformers.CLIPModel.from_pretrained(tmp_path / 'x').eval()
  arrays = released.tensors(golden)
  with torch.no_grad():
    logits = model(
      input_ids=torch.tensor(arrays['input/text']).long(),
      pixel_values=torch.tensor(arrays['input/image']),
    ).logits_per_image
  expected = arrays['output/logits_per_image']
  np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4, rtol=0)


def test_torch_reads_and_writes_what_is_read_here(tmp_path):
  """State dicts of torch.save, of a ResNet too."""
  found = released.read(
    GOLDENS / 'clip_resnet.npz',
    told={'activation': 'quick_gelu', 'text_heads': 2},
  )
  released.write(tmp_path / 'x.safetensors', found, 'openai')
  tensors = released.tensors(tmp_path / 'x.safetensors')
  # Matrices stored by columns, as torch stores what it has transposed.
  state = {
    name: torch.tensor(value.T).T if value.ndim == 2 else torch.tensor(value)
    for name, value in tensors.items()
  }
  torch.save(state, tmp_path / 'x.pt')
  told = {'activation': 'quick_gelu', 'text_heads': 2}
  again = released.read(tmp_path / 'x.pt', told=told)
  for name in ('params', 'statistics'):
    ours, expected = getattr(again, name), getattr(found, name)
    assert ours.keys() == expected.keys()
    for path, value in expected.items():
      assert ours[path].tobytes() == value.tobytes(), path
