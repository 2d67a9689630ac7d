"""Objectives other than CLIP's, through the trainer and the same scores."""

import io
import json
import pathlib

import numpy as np
import pytest
from rich.console import Console

from vit_jax import config as config_lib
from vit_jax import evaluate
from vit_jax.training import loop, schema
from vit_jax.training import run as run_lib

ROOT = pathlib.Path(__file__).parents[2]
TOWER = dict(width=16, depth=1, num_heads=2, mlp_dim=32)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['bag_of_words', 'captioning'])
def test_it_is_trained_and_scored_as_clip_is(name, tmp_path):
  loaded = config_lib.load(f'{ROOT}/configs/clip_objectives.py:{name}')
  loaded.model.image.update(TOWER)
  loaded.model.text.update(TOWER)
  short = [
    '--config.total=2steps', '--config.batch_size=16',
    '--config.log_every=1steps', '--config.data.test.split=test[:30]',
    '--config.schedule.warmup=1steps', '--config.eval.every=100%',
    '--config.checkpoint.every=100%',
  ]  # fmt: skip
  settings = config_lib.resolve(loaded, short, schema.SCHEMA)
  console = Console(file=io.StringIO(), width=80)
  loop.train(run_lib.prepare(settings), tmp_path, console)
  rows = [json.loads(x) for x in (tmp_path / 'metrics.jsonl').open()]
  last = {key: value for row in rows for key, value in row.items()}
  for figure in (
    'train/accuracy', 'test/loss', 'retrieval/image_to_text_recall_5',
  ):  # fmt: skip
    assert np.isfinite(last[figure]), figure
  console = Console(file=io.StringIO(), width=80)
  evaluate.main(
    [
      f'--workdir={tmp_path}', '--tasks=retrieval,zero_shot',
      '--source=field:shape_1:shapes:pixels=32',
    ],
    console,
  )  # fmt: skip
  text = console.file.getvalue()
  assert 'text_to_image_recall_1' in text and 'zero_shot/accuracy' in text
