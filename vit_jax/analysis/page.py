"""Answers on disk, and bound into one page that needs nothing else."""

import base64
import html
import pathlib
from collections.abc import Iterable

import numpy as np

from vit_jax.analysis.pictures import Answer
from vit_jax.config import ConfigError


def save(
  folder: pathlib.Path, name: str, title: str, answer: Answer, made_of: str
) -> None:
  """Writes NAME.png, NAME.npz, NAME.txt, and single images as NAME/00.png.

  Args:
    folder: to write to.
    name: of the files.
    title: of the picture.
    answer: with the picture.
    made_of: which model and images.
  """
  folder.mkdir(parents=True, exist_ok=True)
  answer.figure.savefig(folder / f'{name}.png')
  np.savez_compressed(folder / f'{name}.npz', **answer.numbers)
  text = '\n\n'.join((title, answer.reading, made_of)) + '\n'
  (folder / f'{name}.txt').write_text(text, encoding='utf-8')
  for number, figure in enumerate(answer.each):
    (folder / name).mkdir(exist_ok=True)
    figure.savefig(folder / name / f'{number:02d}.png')


def bind(folder: pathlib.Path, names: Iterable[str]) -> pathlib.Path:
  """Writes `index.html` with all pictures there are; returns its path.

  The pictures are inside the page, which can be moved and sent alone.

  Args:
    folder: that `save` wrote to.
    names: of what may be there, in the order to show.

  Raises:
    ConfigError: there is nothing.
  """
  found = [name for name in names if (folder / f'{name}.txt').exists()]
  if not found:
    raise ConfigError(f'There is no picture in {folder} to bind into a page.')
  sections = ''.join(_section(folder, name) for name in found)
  path = folder / 'index.html'
  path.write_text(_PAGE.format(sections=sections), encoding='utf-8')
  return path


def _section(folder: pathlib.Path, name: str) -> str:
  text = (folder / f'{name}.txt').read_text(encoding='utf-8')
  title, *paragraphs, made_of = map(html.escape, text.strip().split('\n\n'))
  image = base64.b64encode((folder / f'{name}.png').read_bytes()).decode()
  return _SECTION.format(
    name=name,
    title=title,
    reading='\n'.join(f'<p>{part}</p>' for part in paragraphs),
    made_of=made_of,
    image=image,
  )


_SECTION = """<section id="{name}">
<h2>{title}</h2>
<img alt="{title}" src="data:image/png;base64,{image}">
{reading}
<p class="made">{made_of}</p>
</section>
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Inside the model</title>
<style>
body {{
  margin: 0 auto; max-width: 46rem; padding: 1rem;
  font: 1rem/1.5 system-ui, sans-serif; color: #222; background: #fff;
}}
h1 {{ font-size: 1.6rem; }}
h2 {{ margin: 3rem 0 1rem; font-size: 1.2rem; }}
img {{ display: block; max-width: 100%; margin: 0 auto; }}
.made {{ color: #666; font-size: 0.85rem; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>Inside the model</h1>
{sections}</body>
</html>
"""
