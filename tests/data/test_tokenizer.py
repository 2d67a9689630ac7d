"""Token ids equal a slow statement of the rules; files, cuts and training."""

import gzip
import html
import json
import pickle
import tarfile
import unicodedata

import ftfy
import numpy as np
import pytest

from vit_jax.data import merge_dropout
from vit_jax.data import tokenizer as tokenizer_lib
from vit_jax.data.tokenizer import Tokenizer, read_merges, train_merges

CAPTIONS = (
  'A big burly grizzly bear is shown with grass in the background.',
  "it's Tom's; they've, we'll, I'm, you'd, don't, they're!'s 's",
  'two\tspaces \n  and &amp;lt; 1,234 &eacute;',
  '<b> &amp;lt; twice',
  'salt &amp; pepper',
  '\x1b[31mred \x07bell',
  'schÃ¶n, “curly” — … ﬁne ＦＵＬＬ ½ x² ⅷ ١٢٣',
  'Ελληνικά, русский, 日本語のテキスト, हिन्दी, עברית, İstanbul, ß',
  '😀👩‍👩‍👧 🇩🇪 </w> <|endoftext|> &#128512; a\u00a0b\u2003c\u200bd',
  "''''s ...... !!!??? a1b2 aaaaaaaaaaaaaaa aaaa",
  '',
)


def slow_words(text):
  """The words of a text, by one look at a character at a time."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  text = ' '.join(text.split()).lower()

  def kind(character):
    if character.isspace():
      return 'space'
    return {'L': 'letter', 'N': 'digit'}.get(
      unicodedata.category(character)[0], 'other'
    )

  while text:
    endings = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
    length = next((len(end) for end in endings if text.startswith(end)), 1)
    if length == 1 and kind(text[0]) in ('letter', 'other'):
      while length < len(text) and kind(text[length]) == kind(text[0]):
        length += 1
    if kind(text[0]) != 'space':
      yield text[:length]
    text = text[length:]


class SlowTokenizer:
  """Joins the earliest merge, everywhere in the word, until none applies."""

  def __init__(self, merges):
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    self.symbol = {byte: chr(byte) for byte in shown}
    self.symbol |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    ordered = list(self.symbol.values())
    ordered += [symbol + '</w>' for symbol in ordered]
    ordered += [a + b for a, b in merges]
    self.id = {symbol: number for number, symbol in enumerate(ordered)}
    self.rank = {pair: number for number, pair in enumerate(merges)}

  def encode(self, text):
    return [self.id[part] for word in slow_words(text) for part in self(word)]

  def __call__(self, word):
    parts = [self.symbol[byte] for byte in word.encode()]
    parts[-1] += '</w>'
    while True:
      pairs = [pair for pair in zip(parts, parts[1:]) if pair in self.rank]
      if not pairs:
        return parts
      best, joined = min(pairs, key=self.rank.get), []
      while parts:
        count = 2 if tuple(parts[:2]) == best else 1
        joined.append(''.join(parts[:count]))
        parts = parts[count:]
      parts = joined


def real_captions(shared, every):
  """Some captions of the data sets beside the checkout."""
  found = []
  for name in ('coco-cc-mini', 'emoji64', 'nlvr-mini'):
    with tarfile.open(shared / 'data' / f'{name}.tar.gz') as archive:
      for line in archive.extractfile(f'{name}/metadata.jsonl'):
        record = json.loads(line)
        found += record.get('captions', [record['caption']])
        found.append(record.get('emoji', ''))
  return sorted(set(found))[::every]


def random_texts(count):
  """Texts of letters, marks, symbols and spaces from all of Unicode."""
  rng = np.random.default_rng(0)
  known = [
    chr(point)
    for point in range(0x20000)
    if unicodedata.category(chr(point)) not in ('Cn', 'Cs')
  ]
  chosen = rng.integers(len(known), size=(count, 12))
  return [''.join(known[number] for number in row) for row in chosen]


@pytest.fixture(scope='module')
def merges():
  return train_merges(CAPTIONS * 2, 720)


def test_ids_follow_the_rules(merges):
  ours, slow = Tokenizer(merges), SlowTokenizer(merges)
  for text in (*CAPTIONS, *random_texts(1000)):
    assert ours.encode(text) == slow.encode(text), text


def test_ids_follow_the_rules_on_real_captions(shared):
  path = shared / 'data' / 'clip-text' / 'bpe_simple_vocab_16e6.txt.gz'
  merges = read_merges(path)
  ours, slow = Tokenizer(merges), SlowTokenizer(merges)
  assert (ours.size, ours.start, ours.end) == (49_408, 49_406, 49_407)
  # The first is widely published; '!' and '!</w>' are 0 and 256.
  assert ours.encode('a diagram') == [320, 22697]
  assert ours.encode('!') == [256]
  for text in (*CAPTIONS, *real_captions(shared, every=5)):
    assert ours.encode(text) == slow.encode(text), text


def test_merges_are_left_out_at_random(merges):
  tokenizer = Tokenizer(merges, 20)
  rng = np.random.default_rng(0)
  for text in CAPTIONS:
    # A chance that never comes true takes the other path to the same ids.
    ids = tokenizer.encode(text)
    assert tokenizer.encode(text, 1e-12, rng) == ids
    assert tokenizer.decode(ids) == tokenizer.decode(
      tokenizer.encode(text, 0.5, rng)
    )
    # Without any merge a token is a byte.
    letters = ''.join(slow_words(text)).encode()
    assert len(tokenizer.encode(text, 1.0, rng)) == len(letters)

  def drawn(seed, dropout=0.1):
    return tokenizer.encode(CAPTIONS[0], dropout, np.random.default_rng(seed))

  assert drawn(1) == drawn(1)
  assert len({tuple(drawn(seed)) for seed in range(20)}) > 5
  # The earlier merge comes first, wherever it is.
  ranks = {('b', 'c'): 0, ('a', 'b'): 1, ('a', 'bc'): 2}
  assert merge_dropout.merged('abcd', ranks, 0, rng) == ['abc', 'd']
  del ranks['a', 'bc']
  assert merge_dropout.merged('abcab', ranks, 0, rng) == ['a', 'bc', 'ab']
  lengths = [
    np.mean([len(drawn(seed, dropout)) for seed in range(20)])
    for dropout in (0, 0.1, 0.3, 1)
  ]
  assert lengths == sorted(lengths) and lengths[0] < lengths[1]


def test_a_text_that_is_too_long_keeps_its_end_and_is_counted(merges):
  ours = Tokenizer(merges, context_length=8)
  ids = ours.encode('bear grass bear')
  texts = ['bear', '', 'bear grass bear ' * 3]
  tokens, truncated = ours(texts)
  bear = ours.encode('bear')
  assert tokens.dtype == np.int32
  assert tokens[0, : len(bear) + 2].tolist() == [ours.start, *bear, ours.end]
  assert not tokens[0, len(bear) + 2 :].any()
  assert tokens[1].tolist() == [ours.start, ours.end] + [0] * 6
  assert tokens[2].tolist() == [ours.start, *(ids * 3)[:6], ours.end]
  assert truncated.tolist() == [False, False, True]
  assert tokens.max() == ours.end
  # Exactly as long as there is room for is not cut.
  fits = Tokenizer(merges, context_length=len(bear) + 2)
  assert not fits(['bear'])[1].any()


def test_decoding_gives_the_cleaned_text(merges):
  ours = Tokenizer(merges)
  tokens, _ = ours(['A  Bear &amp; 日本 </w> it'])
  assert ours.decode(tokens[0]) == 'a bear & 日本 </ w > it'
  assert ours.decode([*ours.encode('日')[:1], ours.end, 5]) == '\ufffd'
  with pytest.raises(ValueError, match=f'token {ours.size} is not'):
    ours.decode([ours.size])


@pytest.mark.parametrize('name', ['merges.txt', 'merges.txt.gz'])
def test_merges_are_written_in_the_released_format(tmp_path, merges, name):
  path = tmp_path / name
  tokenizer_lib.write_merges(path, merges)
  assert read_merges(path) == merges
  content = path.read_bytes()
  if name.endswith('gz'):
    assert content[4:8] == bytes(4)  # No time: the same whenever it is written.
    content = gzip.decompress(content)
  lines = content.decode().split('\n')
  assert lines[0].startswith('#version')
  assert [tuple(line.split()) for line in lines[1:]] == list(merges)


def test_training_joins_the_most_frequent_pair_first():
  merges = train_merges(['abab abab cd', 'ab cd'], 515 + 2)
  # ab: 2 x 1 inside 'abab' plus one at its end, and so on: ('a', 'b</w>')
  # comes 3 times, ('a', 'b') 2 and ('c', 'd</w>') 2 times, but 'ab' joins
  # with the end of the word only after it exists.
  assert merges[0] == ('a', 'b</w>')
  assert merges[1:] == (('a', 'b'), ('c', 'd</w>'))
  assert Tokenizer(merges).size == 515 + 2


def test_training_is_repeatable_and_a_smaller_one_is_its_beginning(merges):
  assert train_merges(CAPTIONS * 2, 700) == merges[: 700 - 514]
  assert Tokenizer(merges[: 700 - 514]).size == 700


@pytest.mark.parametrize(
  'content, message',
  [
    (b'#version\na b\na b c\n', 'line 3 .* expected two'),
    (b'#version\na b\n\nc d', 'line 3 .* expected two'),
    (b'#version\nab c\n', "no merge before it makes 'ab'"),
    (b'#version\na b\na b', 'comes twice'),
    (b'\x1f\x8b damaged', 'is damaged'),
    (b'#version\n\xff\xff', 'is damaged'),
  ],
)
def test_malformed_merges_are_refused(tmp_path, content, message):
  path = tmp_path / 'merges.txt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    read_merges(path)
  assert str(path) in str(caught.value)


def test_impossible_arguments_are_refused(merges):
  with pytest.raises(ValueError, match='context_length is 2'):
    Tokenizer(merges, context_length=2)
  with pytest.raises(TypeError, match='a list of texts'):
    Tokenizer(merges)('a text')
  with pytest.raises(ValueError, match='size is 514'):
    train_merges(CAPTIONS, 514)
  for texts in (['', ' '], ['a b', 'c 1']):
    with pytest.raises(ValueError, match='nothing to merge.*no pairs of lett'):
      train_merges(texts, 600)


def test_a_tokenizer_can_be_sent_to_another_process(merges):
  ours = Tokenizer(merges, context_length=9)
  copy = pickle.loads(pickle.dumps(ours))
  np.testing.assert_array_equal(copy(CAPTIONS)[0], ours(CAPTIONS)[0])
