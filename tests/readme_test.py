# SPDX-License-Identifier: Apache-2.0
"""What the README shows is what happens."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_two_lines_stand_at_the_top_and_ci_runs_them():
  lines = re.findall(r'^    (pip install -e .*)$', README, re.MULTILINE)
  assert lines == [
    'pip install -e . && python -m thicket.main --config=configs/llm.py',
    "pip install -e '.[test]' && pytest",
  ]
  assert README.index(lines[1]) < 200
  # CI reads the lines from the README itself rather than repeating them.
  ci = (ROOT / '.ci' / 'run').read_text(encoding='utf-8')
  assert r"sed -n 's/^    \(pip install -e .*\)$/\1/p' README.md" in ci


def test_the_ten_lines_run_and_improve_on_the_base(capsys):
  (code,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  scope = {}
  exec(compile(code, 'README.md', 'exec'), scope)
  result = scope['result']
  assert result.members[0].score > 0.5 * result.base_score > -1
  assert scope['prediction'].shape == (64, 1)
  # What is printed is what the text says: base score, then the best member.
  assert ' -> Member(id=' in capsys.readouterr().out


def test_every_documented_key_exists():
  from thicket.arguments import load_config

  config = load_config(str(ROOT / 'configs' / 'llm.py'))
  rows = re.findall(r'^\| (`[^|]*) \|', README, re.MULTILINE)
  keys = re.findall(r'`([a-z_.]+)`', ' '.join(rows))
  assert len(keys) > 8
  for key in keys:
    # '.sigmas' in the table stands beside 'population.size'.
    section, _, name = key.rpartition('.')
    sections = [section] if section else ['population', None]
    assert any(
      name in (config[s] if s else config)
      for s in sections
      if not s or s in config
    ), key
