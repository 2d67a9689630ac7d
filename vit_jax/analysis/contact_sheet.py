"""Many images on one, each with a line of text below it."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels: of each image's longer side, and around it.
_SIDE, _MARGIN = 128, 8
_LINE = 16
_COLUMNS = 8
# Points, of labels and of a title.
_SMALL, _LARGE = 11, 15


def draw(
  images: Sequence[np.ndarray],
  labels: Sequence[str],
  title: str = '',
  columns: int = _COLUMNS,
  side: int = _SIDE,
) -> Image.Image:
  """Returns the sheet.

  Characters that the font lacks are spelled, such as U+65E5 in place of 日.

  Args:
    images: uint8 [height, width, 1 or 3] each, of any sizes.
    labels: of each, cut where they are too long.
    title: above all of them.
    columns: images side by side.
    side: pixels that the longer side of each gets.
  """
  columns = min(columns, len(images))
  rows = -(-len(images) // columns)
  width, height = side + _MARGIN, side + _MARGIN + _LINE
  top = _MARGIN + (2 * _LINE if title else 0)
  sheet = Image.new(
    'RGB', (columns * width + _MARGIN, top + rows * height), 'white'
  )
  pen = ImageDraw.Draw(sheet)
  font = _font(_SMALL)
  if title:
    large = _font(_LARGE)
    room = sheet.width - 2 * _MARGIN
    pen.text((_MARGIN, _MARGIN), _cut(title, large, room), 'black', font=large)
  for number, (image, label) in enumerate(zip(images, labels)):
    row, column = divmod(number, columns)
    left, upper = _MARGIN + column * width, top + row * height
    shown = _scaled(image, side)
    place = (
      left + (side - shown.width) // 2, upper + (side - shown.height) // 2
    )  # fmt: skip
    # Pictures may be white, as the sheet is.
    x, y = place
    edge = (x - 1, y - 1, x + shown.width, y + shown.height)
    pen.rectangle(edge, outline='lightgray')
    sheet.paste(shown, place)
    pen.text((left, upper + side + 1), _cut(label, font, side), 'black', font)
  return sheet


def _scaled(image: np.ndarray, side: int) -> Image.Image:
  """Returns an image whose longer side has `side` pixels."""
  shown = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  scale = side / max(shown.size)
  # Small pictures keep their pixels visible.
  how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
  size = [max(1, round(scale * length)) for length in shown.size]
  return shown.resize(size, how).convert('RGB')


def _font(points: int) -> ImageFont.FreeTypeFont:
  # Pillow's own has hardly any letters but those of English.
  folder = pathlib.Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
  return ImageFont.truetype(folder / 'DejaVuSans.ttf', points)


def _spelled(text: str, font: ImageFont.FreeTypeFont) -> str:
  """Returns a text without characters of which only a box would be seen."""
  box = bytes(font.getmask('\uffff'))  # No character, so no font has it.
  return ''.join(
    f'U+{ord(character):04X} '
    if not character.isspace() and bytes(font.getmask(character)) == box
    else character
    for character in text
  )


def _cut(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
  """Returns as much of a text as there is room for, in pixels."""
  text = _spelled(text, font)
  if font.getlength(text) <= room:
    return text
  while text and font.getlength(text + '...') > room:
    text = text[:-1]
  return text + '...'
