"""One page that can be read as plain text."""

from vit_jax.evaluation import (
  corruptions,
  few_shot,
  linear_probe,
  markdown_report,
  retrieval,
  zero_shot,
)


def test_all_results_fit_a_page():
  chance = retrieval.chance([0, 0, 1, 2], [0, 1, 2])
  page = markdown_report.write(
    'A model',
    {'checkpoint': 'runs/a, step 1,000'},
    metric_results={'digits test': {'loss': 0.25, 'examples': 1797}},
    zero_shot_results={
      'imagenet, 80 templates': zero_shot.Result(0.5, 0.9, 0.4, 10_000, 1000),
      'a|b': zero_shot.Result(0.25, 1.0, 0.25, 48, 2),
    },
    retrieval_results={'chance': chance},
    linear_probe_results={
      'digits': linear_probe.Result(0.9, 0.8, 0.31623, {}, False, 100)
    },
    few_shot_results={
      'digits': [
        few_shot.Result(1, 1.0, (0.4, 0.6)),
        few_shot.Result(10, 1.0, (0.7,)),
      ],
      'other': [few_shot.Result(10, 1.0, (0.7, 0.7))],
    },
    corruption_results={
      'digits': corruptions.Result(0.8, {'gaussian_noise': (0.4,) * 5})
    },
    variant_results={'imagenet_a': zero_shot.Result(0.5, 0.6, 0.4, 7500, 200)},
  )
  lines = page.splitlines()
  assert max(map(len, lines)) <= 80 and page.endswith('|\n')
  assert lines[:3] == ['# A model', '', '- checkpoint: runs/a, step 1,000']
  rows = [' '.join(line.split()) for line in lines]
  for row in (
    '| digits test | mean |',
    '| loss | 0.2500 |',
    '| examples | 1,797 |',
    '| data | top-1 | top-5 | per class | classes | images |',
    '| imagenet, 80 templates | 50.0 ± 0.5 | 90.0 | 40.0 | 1,000 | 10,000 |',
    r'| a\|b | 25.0 ± 6.2 | | 25.0 | 2 | 48 |',
    '| chance | 33.3 | 100.0 | 100.0 | 2.5 | 3 | 4 |',
    '| chance | 33.3 | 100.0 | 100.0 | 2 | 4 | 3 |',
    '| digits | 90.0 ± 3.0 | 80.0 | 0.316 * | 100 |',
    '| digits | 50.0 ± 14.1 | 70.0 |',
    '| other | | 70.0 ± 0.0 |',
    'digits: 80.0 without corruption, 40.0 in the mean over all.',
    '| imagenet_a | 50.0 ± 0.6 | 60.0 | 40.0 | 200 | 7,500 |',
    '| gaussian noise | 40.0 | 40.0 | 40.0 | 40.0 | 40.0 | 40.0 | 50.0 |',
  ):
    assert row in rows, row


def test_columns_line_up():
  page = markdown_report.table(
    ('data', 'x'), [('a', '1'), ('long', '-10,000'), ('', '')]
  )
  assert page.splitlines() == [
    '| data |       x |',
    '| ---- | ------: |',
    '| a    |       1 |',
    '| long | -10,000 |',
    '|      |         |',
  ]


def test_what_there_is_not_is_left_out():
  assert markdown_report.write('A model', {}) == '# A model\n'
