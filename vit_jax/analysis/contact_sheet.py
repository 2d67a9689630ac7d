"""Many images on one, each with a line of text below it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels: of each image's longer side, and around it.
_SIDE, _MARGIN = 128, 8
_LINE = 16
_COLUMNS = 8


def draw(
  images: Sequence[np.ndarray],
  labels: Sequence[str],
  title: str = '',
  columns: int = _COLUMNS,
  side: int = _SIDE,
) -> Image.Image:
  """Returns the sheet.

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
  font = ImageFont.load_default(size=12)
  if title:
    large = ImageFont.load_default(size=16)
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


def _cut(text: str, font: ImageFont.ImageFont, room: int) -> str:
  """Returns as much of a text as there is room for, in pixels."""
  if font.getlength(text) <= room:
    return text
  while text and font.getlength(text + '...') > room:
    text = text[:-1]
  return text + '...'
