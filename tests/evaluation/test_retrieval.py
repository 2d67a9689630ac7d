"""Ranks against a brute force that draws the order of ties many times."""

import numpy as np
import pytest

from vit_jax.evaluation import retrieval


def noise(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def drawn(queries, candidates, query_of, candidate_of, draws=4000):
  """Returns recalls and mean ranks from sorting, ties in random order."""
  rng = np.random.default_rng(1)
  ranks = np.zeros((draws, len(queries)))
  for q, query in enumerate(queries):
    scores = [
      round(float(query @ x / np.linalg.norm(x)), 9) for x in candidates
    ]
    right = np.array([query_of[q] == x for x in candidate_of])
    for draw in range(draws):
      order = np.lexsort((rng.random(len(scores)), [-x for x in scores]))
      ranks[draw, q] = 1 + right[order].argmax()
  recalls = {k: (ranks <= k).mean() for k in retrieval.RECALLS}
  return recalls, ranks.mean(axis=0)


def test_ties_are_expectations_over_their_order():
  """Five captions an image; some images and captions are there twice."""
  images = noise(6, 3)
  images[4] = 7 * images[1]  # The same direction, in other rounding.
  text_of = np.repeat(np.arange(6), 5)
  texts = noise(30, 3, seed=2) + images[text_of]
  texts[[3, 11, 12, 29]] = images[2]
  texts[[20, 21]] = texts[5]
  result = retrieval.evaluate(images, texts, text_of)
  for direction, arguments in (
    (result.image_to_text, (images, texts, np.arange(6), text_of)),
    (result.text_to_image, (texts, images, text_of, np.arange(6))),
  ):
    recalls, ranks = drawn(*arguments, draws=2000)
    # Four standard errors of 2,000 draws, and less as queries are averaged.
    for k, recall in recalls.items():
      assert direction.recalls[k] == pytest.approx(recall, abs=0.02)
    found = retrieval.expected_rank(retrieval.ranks(*arguments))
    np.testing.assert_allclose(found, ranks, rtol=0, atol=0.15)
    assert direction.median_rank == pytest.approx(np.median(found))
  assert (result.image_to_text.queries, result.text_to_image.queries) == (6, 30)


def test_known_ranks():
  angles = np.deg2rad([0, 10, 30, 60, 100, 150])
  images = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  # Texts lie where images 1, 0, 2, 5, 4 and 4 do: two pairs change places.
  texts = images[[1, 0, 2, 5, 4, 4]] * [[3], [1], [1], [2], [5], [1]]
  text_of = [0, 1, 2, 3, 4, 5]
  result = retrieval.evaluate(images, texts, text_of)
  # Images 0, 1: rank 2; 2: 1; 3: last; 4: half a hit; 5: at 100 degrees the
  # second text that is there twice, after that at 150.
  found = retrieval.ranks(images, texts, np.arange(6), np.array(text_of))
  np.testing.assert_array_equal(
    retrieval.expected_rank(found), [2, 2, 1, 6, 1.5, 2.5]
  )
  assert result.image_to_text.recalls == {1: 1.5 / 6, 5: 5 / 6, 10: 1}
  assert result.image_to_text.median_rank == 2


def test_any_text_of_an_image_counts():
  images = np.eye(3)
  texts = np.concatenate([np.eye(3)[[1, 2, 0]], np.eye(3)])
  both = retrieval.evaluate(images, texts, [0, 1, 2, 0, 1, 2])
  # The right one and a wrong one tie at the first place.
  assert both.image_to_text.recalls == {1: 0.5, 5: 1.0, 10: 1.0}
  assert both.text_to_image.recalls[1] == 0.5
  # Images that share their texts are right for each other's.
  shared = retrieval.evaluate(images, texts, [7] * 6, [7] * 3)
  assert shared.text_to_image.recalls[1] == 1
  assert shared.text_to_image.median_rank == 1


def test_a_model_that_says_nothing_is_as_good_as_chance():
  text_of = np.repeat(np.arange(20), 3)
  collapsed = np.float32(noise(1, 8))
  result = retrieval.evaluate(
    collapsed.repeat(20, axis=0) * np.arange(1, 21)[:, None],
    collapsed.repeat(60, axis=0),
    text_of,
  )
  chance = retrieval.chance(text_of, np.arange(20))
  for found, expected in zip(result, chance):
    assert found.median_rank == pytest.approx(expected.median_rank)
    assert found.recalls == pytest.approx(expected.recalls)
  assert chance.text_to_image.recalls == pytest.approx(
    {1: 1 / 20, 5: 0.25, 10: 0.5}
  )
  # Of 60, 3 are right: one minus the chance that 5 drawn are all wrong.
  wrong = np.prod([(57 - i) / (60 - i) for i in range(5)])
  assert chance.image_to_text.recalls[5] == pytest.approx(1 - wrong)
  assert chance.image_to_text.median_rank == 61 / 4


def test_only_some_scores_exist_at_a_time(monkeypatch):
  images, texts = noise(50, 4), noise(100, 4, seed=1)
  text_of = np.arange(100) % 50
  whole = retrieval.evaluate(images, texts, text_of)
  monkeypatch.setattr(retrieval, '_SCORES', 350)
  assert retrieval.evaluate(images, texts, text_of) == whole
  monkeypatch.setattr(retrieval, '_SCORES', 1)
  assert retrieval.evaluate(images, texts, text_of) == whole


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(text_of=[0, 1, 1]), '1 of 3 queries have no right candidate'),
    (dict(text_of=[0, 1, 3]), 'no right candidate, the first is number 2'),
    (dict(text_of=[0, 1]), '3 queries and 3 candidates belong to 3 and 2'),
    (dict(texts=np.zeros((3, 2))), '3 of 3 features have no direction'),
    (dict(images=np.full((3, 2), np.nan)), 'not finite, the first in row 0'),
    (dict(texts=np.ones(3)), r'shape \(3,\), expected \[n, width\]'),
  ],
)
def test_what_cannot_be_scored(change, message):
  given = dict(images=noise(3, 2), texts=noise(3, 2), text_of=[0, 1, 2])
  with pytest.raises(ValueError, match=message):
    retrieval.evaluate(**given | change)


def test_figures_have_names():
  result = retrieval.evaluate(np.eye(3), np.eye(3), [0, 1, 2])
  assert retrieval.figures(result) == {
    f'retrieval/{direction}_{name}': 1.0
    for direction in ('image_to_text', 'text_to_image')
    for name in ('recall_1', 'recall_5', 'recall_10', 'median_rank')
  }


def test_a_table_of_scores_is_as_good_as_features():
  rng = np.random.default_rng(3)
  images, texts = rng.normal(size=(6, 5)), rng.normal(size=(9, 5))
  text_of = np.arange(9) % 6
  table = retrieval.unit(images) @ retrieval.unit(texts).T
  expected = retrieval.evaluate(images, texts, text_of)
  assert retrieval.evaluate_scores(table, text_of, np.arange(6)) == expected
  with pytest.raises(ValueError, match='not finite'):
    retrieval.evaluate_scores(table * np.inf, text_of, np.arange(6))
