"""Sheets of images can be read, whatever their titles are."""

import numpy as np

from vit_jax.analysis import contact_sheet

IMAGE = np.full((8, 8, 3), 200, np.uint8)


def title(text):
  """Returns the pixels of a sheet with this title."""
  return np.asarray(contact_sheet.draw([IMAGE] * 4, ['1'] * 4, text))


def test_letters_are_seen_and_others_spelled():
  for text in ('é', 'Ж', 'ω'):
    assert (title(text) != title(f'U+{ord(text):04X} ')).any()
  for text in ('\U0001f9a9', '日'):
    np.testing.assert_array_equal(title(text), title(f'U+{ord(text):04X} '))


def test_what_is_too_long_is_cut():
  np.testing.assert_array_equal(title('a' * 200), title('a' * 300))
