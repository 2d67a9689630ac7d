"""Images with captions: tables, archives, shards, and what is left out."""

import gzip
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import (
  caption_files,
  caption_filter,
  caption_shards,
  images,
  tar_files,
)
from vit_jax.data.caption_filter import FilteredSource, Rules


def png(value, size=(6, 4)):
  content = io.BytesIO()
  Image.new('RGB', size, (value, 0, 0)).save(content, 'png')
  return content.getvalue()


def value_of(record):
  """What `png` was given."""
  return images.decode(record['image'])[0, 0, 0]


def write_tar(path, files):
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode='w') as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  data = content.getvalue()
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


ROWS = [
  {'file': 'a/0.png', 'captions': ['zero', 'null'], 'split': 'train'},
  {'file': 'a/1.png', 'caption': 'éins\tone', 'split': 'test', 'style': 'old'},
  {'file': 'b/2.png', 'text': 'two', 'split': 'train'},
]
JSONL = '\n'.join(map(json.dumps, ROWS)).encode()
TSV = (
  b'filepath\ttitle\tsplit\n'
  b'a/0.png\tzero\ttrain\r\na/1.png\teins\ttest\n\nb/2.png\ttwo\ttrain\n'
)
PICTURES = {row['file']: png(number) for number, row in enumerate(ROWS)}


@pytest.mark.parametrize('table', ['metadata.jsonl', 'captions.tsv'])
@pytest.mark.parametrize('kind', ['folder', 'file', 'set.tar', 'set.tar.gz'])
def test_tables_beside_images(tmp_path, kind, table):
  files = {table: JSONL if table.endswith('jsonl') else TSV, **PICTURES}
  path = tmp_path / kind
  if '.tar' in kind:
    write_tar(path, {f'set/{name}': data for name, data in files.items()})
  else:
    for name, data in files.items():
      (path / name).parent.mkdir(parents=True, exist_ok=True)
      (path / name).write_bytes(data)
    path = path / table if kind == 'file' else path
  openers = caption_files.open_captions(str(path))
  assert sorted(openers) == ['test', 'train']
  train = pickle.loads(pickle.dumps(openers['train']()))
  assert len(train) == 2
  assert [value_of(train[index]) for index in range(2)] == [0, 2]
  zero = ('zero', 'null') if table.endswith('jsonl') else ('zero',)
  assert train[0]['texts'] == train.captions(0) == zero
  assert train.captions(1) == ('two',)
  assert train.name(1).startswith(str(tmp_path))
  assert train.name(1).endswith('b/2.png')
  with pytest.raises(IndexError):
    train[2]
  test = openers['test']()
  assert value_of(test[0]) == 1
  if table.endswith('jsonl'):
    assert test.fields(0) == ROWS[1]
    assert test.captions(0) == ('éins\tone',)


@pytest.mark.parametrize(
  'table, content, message',
  [
    ('metadata.jsonl', b'{"file": "a", "caption": "b"}\n{', 'line 2 of'),
    ('metadata.jsonl', b'[1]', 'line 1 .* not an object'),
    ('metadata.jsonl', b'{"image": "a", "caption": "b"}', 'none of file, '),
    ('metadata.jsonl', b'{"file": "a", "tag": "b"}', 'none of captions, '),
    ('metadata.jsonl', b'{"file": "a", "caption": 3}', '3 is neither'),
    ('metadata.jsonl', b'{"file": "a", "captions": []}', 'is neither'),
    ('metadata.jsonl', b'{"file": 1, "caption": "b"}', '1 is not a name'),
    ('metadata.jsonl', b'{"file": "a", "caption": "b", "split": 1}', 'a name'),
    ('metadata.jsonl', b'\xff', 'line 1 of'),
    ('metadata.jsonl', b'\n', 'has no row'),
    ('metadata.tsv', b'file\tcaption\na\n', 'line 2 .* 1 columns'),
    ('metadata.tsv', b'file\tlabel\na\tb\n', 'line 1 .* none of captions'),
  ],
)
def test_malformed_rows_are_named(tmp_path, table, content, message):
  (tmp_path / table).write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    caption_files.open_captions(str(tmp_path))
  assert str(tmp_path / table) in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='no table of captions'):
    caption_files.open_captions(str(tmp_path))
  (tmp_path / 'captions.jsonl').write_bytes(JSONL)
  (tmp_path / 'captions.tsv').write_bytes(TSV)
  with pytest.raises(FileNotFoundError, match='jsonl and captions.tsv'):
    caption_files.open_captions(str(tmp_path))
  path = tmp_path / 'set.tar'
  write_tar(path, {'captions.jsonl': JSONL, 'a/0.png': b'', 'a/1.png': b''})
  with pytest.raises(ValueError, match="line 3 .* holds no 'b/2.png'"):
    caption_files.open_captions(str(path))
  with pytest.raises(FileNotFoundError, match='there is no .*else.tar'):
    caption_files.open_captions(str(tmp_path / 'else.tar'))
  with pytest.raises(FileNotFoundError, match='no archive at'):
    caption_shards.open_shards(str(tmp_path / 'none-*.tar'))


def test_an_image_that_is_missing_is_an_error_of_its_record(tmp_path):
  (tmp_path / 'captions.jsonl').write_bytes(JSONL)
  source = caption_files.open_captions(str(tmp_path))['train']()
  with pytest.raises(FileNotFoundError, match='b/2.png'):
    source[1]


def test_an_archive_is_indexed_once(tmp_path, monkeypatch):
  path = tmp_path / 'set.tar'
  write_tar(path, {'a\n': b'first', '../é' + 'b' * 120: b'second', 'c': b''})
  found = tar_files.Archive(path).files()
  assert [tar_files.Archive(path).read(*place) for place in found.values()] == [
    b'first',
    b'second',
    b'',
  ]
  # No name inside became a file outside.
  assert sorted(os.listdir(tmp_path)) == ['set.tar', 'set.tar.index.npz']
  scans = []
  scan = tar_files._scan
  monkeypatch.setattr(
    tar_files, '_scan', lambda *given: scans.append(given) or scan(*given)
  )
  assert tar_files.Archive(path).files() == found
  assert list(tar_files.Archive(path).files()) == list(found)
  assert not scans
  # Another archive under the same name, and an index that is damaged.
  write_tar(path, {'a\n': b'other', 'd': b'x' * 2000})
  assert list(tar_files.Archive(path).files()) == ['a\n', 'd']
  assert len(scans) == 1
  (tmp_path / 'set.tar.index.npz').write_bytes(b'PK damaged')
  assert list(tar_files.Archive(path).files()) == ['a\n', 'd']
  assert len(scans) == 2


def test_an_index_is_for_everybody_and_whole_or_not_there(
  tmp_path, monkeypatch
):
  path, kept = tmp_path / 'set.tar', tmp_path / 'set.tar.index.npz'
  write_tar(path, {'a': b'first'})
  before = os.umask(0o027)
  try:
    found = tar_files.Archive(path).files()
  finally:
    os.umask(before)
  assert kept.stat().st_mode & 0o777 == 0o640
  kept.unlink()

  def full(file, **arrays):
    file.write(b'half of it')
    raise OSError('no space left')

  monkeypatch.setattr(np, 'savez', full)
  assert tar_files.Archive(path).files() == found
  assert os.listdir(tmp_path) == ['set.tar']


@pytest.mark.parametrize('damage', ['cut', 'end cut', 'header', 'no tar', 'gz'])
def test_damaged_archives_are_refused(tmp_path, damage):
  path = tmp_path / ('a.tar.gz' if damage == 'gz' else 'a.tar')
  write_tar(path, {'a': b'x' * 1000, 'b': b'y' * 1000})
  content = bytearray(path.read_bytes())
  if damage == 'cut':
    content = content[:2000]
  elif damage == 'end cut':
    content = content[: 2 * 1536]
  elif damage == 'header':
    content[1536 + 150] ^= 1
  elif damage == 'gz':
    content = content[:-20]
  else:
    content = b'no archive' * 100
  path.write_bytes(content)
  with pytest.raises(ValueError, match='damaged|cut off') as caught:
    tar_files.Archive(path).files()
  assert str(path) in str(caught.value)


def test_links_in_an_archive_lead_nowhere(tmp_path):
  path = tmp_path / 'a.tar'
  with tarfile.open(path, 'w') as archive:
    link = tarfile.TarInfo('0.txt')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/hostname'
    archive.addfile(link)
  assert not tar_files.Archive(path).files()


def shard(numbers):
  files = {}
  for number in numbers:
    files[f'x/{number:03}.png'] = png(number)
    files[f'x/{number:03}.txt'] = f' caption {number}\n'.encode()
  return files


def test_shards_are_one_source_in_order(tmp_path):
  (tmp_path / 'train').mkdir()
  write_tar(tmp_path / 'train' / '01.tar', shard(range(3, 5)))
  files = shard(range(3))
  # Of several files, '.txt' is the caption; '.json' alone does as well.
  files['x/002.json'] = json.dumps({'caption': 'no', 'score': 7}).encode()
  files['y.JPG'] = png(9)
  files['y.json'] = b'{"captions": ["nine", "neuf"]}'
  files |= {'lone.png': png(0), 'x/008.txt': b'no image', 'z.cls': b'3'}
  write_tar(tmp_path / 'train' / '00.tar', files)
  openers = caption_shards.open_shards(str(tmp_path))
  assert list(openers) == ['train']
  source = pickle.loads(pickle.dumps(openers['train']()))
  assert [value_of(source[i]) for i in range(len(source))] == [0, 1, 2, 9, 3, 4]
  assert source[1]['texts'] == source.captions(1) == ('caption 1',)
  assert source.captions(2) == ('caption 2',)
  assert source.fields(2)['score'] == 7
  assert source.fields(1) == {}
  assert source.captions(3) == ('nine', 'neuf')
  assert source.name(4) == f'{tmp_path}/train/01.tar: x/003'
  assert source.dropped == {'no text': 1, 'no image': 2}
  with pytest.raises(IndexError):
    source[6]
  pattern = str(tmp_path / 'train' / '0[1-9].tar')
  assert len(caption_shards.open_shards(pattern)['all']()) == 2


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('0.txt', b'caf\xe9', "can't decode"),
    ('0.json', b'{"caption": "caf', 'the .json of .*Unterminated'),
    ('0.json', b'{"caption": 3}', '3 is neither'),
  ],
)
def test_a_caption_that_cannot_be_read_is_named(
  tmp_path, name, content, message
):
  write_tar(tmp_path / 'a.tar', {'0.png': png(0), name: content})
  source = caption_shards.open_shards(str(tmp_path))['all']()
  with pytest.raises(ValueError, match=message) as error:
    source.captions(0)
  assert f'{tmp_path}/a.tar: 0: ' in str(error.value)


def test_shards_without_texts_say_what_they_hold(tmp_path):
  write_tar(tmp_path / '0.tar', {'0.png': png(0), '0.cls': b'5'})
  openers = caption_shards.open_shards(str(tmp_path))
  with pytest.raises(ValueError, match='found the extensions cls, png'):
    openers['all']()


class Listed:
  """A source of what it is given: rows of fields, captions and images."""

  def __init__(self, *rows):
    self.rows = rows

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, index):
    return {'image': self.rows[index][1], 'texts': self.captions(index)}

  def captions(self, index):
    if self.rows[index][0] is None:
      raise ValueError('broken')
    return self.rows[index][0]

  def fields(self, index):
    return {'number': index, 'style': 'even' if index % 2 == 0 else 'odd'}

  def name(self, index):
    return f'row {index}'


def test_filters_count_what_they_drop():
  image, wide = np.zeros((4, 6, 3), np.uint8), png(0, (9, 4))
  source = Listed(
    (('a good caption',), image),
    (('ok', 'another good caption'), image),
    (('no', '?'), image),
    (('x' * 50,), image),
    (('фотография кота',), image),
    (('IMG_20190305_0001',), image),
    (('a good photo on 1 May',), image),
    (('a wide good caption',), wide),
    (('un café très bon',), png(0)),
    (None, image),
    (('image is damaged',), b'damaged'),
  )
  rules = Rules(characters=(5, 40), latin=0.5, without=r'on \d+ May', aspect=2)
  kept = pickle.loads(pickle.dumps(FilteredSource(source, rules)))
  assert [kept.name(i) for i in range(len(kept))] == [
    f'row {number}' for number in (0, 1, 8, 9, 10)
  ]
  assert kept[1]['texts'] == kept.captions(1) == ('another good caption',)
  assert kept.dropped == {
    'caption too short': 1,
    'caption too long': 1,
    'caption not Latin': 2,
    'caption excluded': 1,
    'image too long': 1,
  }
  assert kept.dropped_captions == 1


def test_filters_choose_by_fields():
  source = Listed(*[(('caption',), None)] * 6)
  odd = FilteredSource(source, Rules(where=('style=odd', 'number!=3')))
  assert [odd.fields(i)['number'] for i in range(len(odd))] == [1, 5]
  assert odd.dropped == {'not style=odd': 3, 'not number!=3': 1}
  some = FilteredSource(source, Rules(where=('style~^od', 'number!~[13]$')))
  assert [some.fields(i)['number'] for i in range(len(some))] == [5]
  with pytest.raises(ValueError, match="row 0 has no field 'styl'.*style"):
    FilteredSource(source, Rules(where=('styl=odd',)))
  with pytest.raises(ValueError, match=r'none of 6 .*caption too short: 6'):
    FilteredSource(source, Rules(characters=(20, 40)))


@pytest.mark.parametrize(
  'rules, message',
  [
    ({'characters': (5, 2)}, r'characters is \(5, 2\)'),
    ({'latin': 50}, 'latin is 50'),
    ({'aspect': 0.5}, 'aspect is 0.5'),
    ({'without': '('}, 'without is'),
    ({'where': ('style',)}, "has 'style', expected 'field=value'"),
    ({'where': ('style~(',)}, r"has 'style~\(': missing \)"),
  ],
)
def test_impossible_rules_are_refused(rules, message):
  with pytest.raises(ValueError, match=message):
    Rules(**rules)


def test_latin_letters():
  assert caption_filter.latin_share('a b c') == 1
  assert caption_filter.latin_share('a1_ b') == 0.5
  assert caption_filter.latin_share('é1') == 0.5
  assert caption_filter.latin_share('日本') == 0
  assert caption_filter.latin_share(' ') == 0


def test_the_emoji(shared):
  path = shared / 'data' / 'emoji64.tar.gz'
  openers = caption_files.open_captions(str(path))
  sources = {split: opener() for split, opener in openers.items()}
  lengths = {split: len(source) for split, source in sources.items()}
  assert lengths == {'train': 7769, 'val': 236, 'test': 448}
  unseen = FilteredSource(sources['test'], Rules(where=('style=noto',)))
  assert len(unseen) > 50
  record = unseen[0]
  assert images.decode(record['image']).shape == (64, 64, 3)
  assert 'noto' in record['texts'][1]
