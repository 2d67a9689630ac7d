"""What the markers of a JPEG file say, without decoding it.

OpenCV before version 5 paints what a cut-off file lacks in grey and reports
success, so the end of the file is looked for here. Source: ITU-T T.81, annex B.
"""

import dataclasses

_START_OF_IMAGE = b'\xff\xd8'
_END_OF_IMAGE = b'\xff\xd9'
_START_OF_SCAN = 0xDA
_EXIF = 0xE1
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
  """Facts of a JPEG file.

  Attributes:
    height: Stored height in pixels, before any EXIF rotation.
    width: Stored width in pixels.
    has_exif: Whether an EXIF block may ask for rotation.
  """

  height: int
  width: int
  has_exif: bool


def is_jpeg(data: bytes) -> bool:
  """Returns whether the data begins as a JPEG file does."""
  return data[:2] == _START_OF_IMAGE


def read_header(data: bytes) -> Header:
  """Reads the markers up to the first scan and looks for the file's end.

  Args:
    data: Content of a JPEG file.

  Returns:
    The header.

  Raises:
    ValueError: If the file is malformed or cut off.
  """
  position, frame, has_exif = 2, None, False
  try:
    while True:
      if data[position] != 0xFF:
        raise ValueError(f'JPEG has no marker at byte {position}')
      marker = data[position + 1]
      if marker == 0xFF or marker in _WITHOUT_LENGTH:
        # 0xFF before a marker is padding.
        position += 1 if marker == 0xFF else 2
        continue
      if marker == _START_OF_SCAN:
        break
      if marker in _FRAME_HEADERS:
        frame = data[position + 5 : position + 9]
      elif marker == _EXIF:
        has_exif = True
      position += 2 + (data[position + 2] << 8) + data[position + 3]
  except IndexError:
    raise ValueError(f'JPEG is cut off after {len(data)} bytes') from None
  if frame is None or len(frame) < 4:
    raise ValueError('JPEG has no frame header')
  # Searched after the start of the scan, as a thumbnail has an end of its own.
  if data.rfind(_END_OF_IMAGE, position) < 0:
    raise ValueError(f'JPEG is cut off after {len(data)} bytes')
  height = int.from_bytes(frame[:2], 'big')
  width = int.from_bytes(frame[2:], 'big')
  if not height or not width:
    raise ValueError(f'JPEG of {height}x{width} pixels')
  return Header(height, width, has_exif)
