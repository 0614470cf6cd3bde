# SPDX-License-Identifier: Apache-2.0
"""Classification: written labels, and labels scored without decoding."""

import dataclasses
import functools
import io
import json

import jax
import jax.numpy as jnp
import made
import numpy as np
import pytest
import tiny
import tiny_gguf
from rich.console import Console

from experiments.classify import __main__ as experiment
from thicket import (
  batching,
  data,
  decode,
  engine,
  labels,
  perturb,
  reading,
  report,
  run,
  sampling,
  sharding,
  stored,
  tasks,
)
from thicket.arguments import load_config
from thicket.models import decoder
from thicket.models.load import load
from thicket.models.tokenizer import Tokenizer
from thicket.population import BASE, Members, Population
from thicket.tasks import base

ROW = {'text': 'A joy, {labels} and all.', 'label': 'positive'}
THREE = ('yes', 'no', 'not sure')


# The task.


def test_rows_are_read():
  task = tasks.make('classify')
  assert task.parse(ROW, 3) == base.Example(3, ROW['text'], 'positive')


def test_the_prompt_names_the_words_and_leaves_the_text_alone():
  task = tasks.make(
    'classify',
    labels=THREE,
    words=(' Yes', ' No', ' Unsure'),
    prompt_template='{labels}? {text}',
  )
  example = base.Example(0, 'a {text} of {labels}', 'no')
  assert task.prompt(example) == 'Yes, No or Unsure? a {text} of {labels}'


@pytest.mark.parametrize('template', tasks.make('classify').prompt_templates)
def test_each_prompt_asks_for_what_is_read(template):
  task = tasks.make('classify', prompt_template=template)
  prompt = task.prompt(task.parse(ROW, 0))
  assert 'negative or positive' in prompt
  assert ROW['text'] in prompt
  # The prompt itself, repeated, is no answer by either rule.
  assert task.extract(prompt) is None
  assert task.extract_lenient(prompt) is None


@pytest.mark.parametrize(
  ('response', 'strict', 'lenient'),
  [
    ('yes', 'yes', 'yes'),
    ('Yes.', 'yes', 'yes'),
    (' NO!\n', 'no', 'no'),
    ('"not sure"', 'not sure', 'not sure'),
    ('**Not  sure**', 'not sure', 'not sure'),
    ('\n\nno\nbecause yes is wrong', 'no', 'no'),
    ('no\n\nyes', 'no', 'no'),
    ('The label is no.', None, 'no'),
    ('I am not sure about it', None, 'not sure'),
    ('yes or no', None, None),
    ('no, not sure', None, None),
    ('no no no', None, 'no'),
    ('yesterday', None, None),
    ('know-how and noise', None, None),
    ('ye s', None, None),
    ('\uff59\uff45\uff53', None, None),
    ('yes1', None, None),
    ('maybe', None, None),
    ('...', None, None),
    ('', None, None),
    ('y' * 20, None, None),
  ],
)
def test_extraction(response, strict, lenient):
  task = tasks.make('classify', labels=THREE)
  assert task.extract(response) == strict
  assert task.extract_lenient(response) == lenient


@pytest.mark.parametrize(
  'piece', ['not ', 'not sure', ' ', '*"', 'no yes ', '(((', 'ß']
)
def test_a_megabyte_is_read_at_once(piece):
  # Quadratic time would be hours.
  response = piece * (1_000_000 // len(piece))
  task = tasks.make('classify', labels=THREE)
  assert task.extract(response) is None
  wanted = {'not sure': 'not sure'} if piece == 'not sure ' else {}
  assert task.extract_lenient(response) == wanted.get(piece)


def test_words_are_read_back_as_labels():
  task = tasks.make('classify', words=(' bad', ' good'))
  assert task.extract('Good.') == 'positive'
  assert task.extract_lenient('that is bad') == 'negative'
  assert task.extract('positive') is None


def test_rewards():
  example = base.Example(0, 'x', 'positive')
  task = tasks.make('classify')
  verdict = base.judge(task, 'positive', example)
  assert verdict == base.Judgement(1.0, 1.0, True, 'positive', 'positive', True)
  assert task.scored_reward('negative', -0.7, example) == 0.0
  task = tasks.make('classify', objective='likelihood')
  low, high = task.reward_range
  assert (low, high) == (-20.0, 0.0)
  for answer, log, reward in (
    ('negative', -0.75, -0.75),
    ('positive', -0.5, -0.5),
    ('negative', -25.0, low),
    ('negative', -np.inf, low),
    (None, np.nan, low),
  ):
    assert task.scored_reward(answer, log, example) == reward
  # A vote has no likelihoods.
  assert base.judge_answer(task, 'positive', example).reward == high
  assert base.judge_answer(task, None, example).reward == low


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'labels': ('a',)}, r"labels=\('a',\): name two"),
    ({'labels': ('a', 'a')}, "'a' and 'a' are alike"),
    ({'labels': ('a', 'A.')}, "'a' and 'A.' are alike"),
    ({'labels': ('a', ' ')}, "' ' says nothing"),
    ({'words': ('x',)}, r"words=\('x',\) for labels"),
    ({'words': ('x', 'x')}, 'are alike'),
    ({'offsets': (1.0,)}, r'offsets=\(1.0,\) for labels'),
    ({'offsets': (1.0, float('inf'))}, 'not finite'),
    ({'score': 'best'}, "score='best'; known: calibrated, sum, mean"),
    ({'method': 'guess'}, "method='guess'"),
    ({'objective': 'f1'}, "objective='f1'"),
    ({'content_free': ' '}, 'content_free is empty'),
    ({'objective': 'likelihood', 'method': 'generate'}, "needs method='score'"),
    ({'prompt_template': '{question}'}, 'must hold {text} once'),
  ],
)
def test_settings_that_are_refused(settings, message):
  with pytest.raises(base.TaskError, match=message):
    tasks.make('classify', **settings)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'label': 'neutral'}, "label 'neutral' is not one of"),
    ({'label': 1}, "field 'label' is 1"),
    ({'text': None}, "field 'text' is None"),
    ({'text': ' '}, 'the question is empty'),
  ],
)
def test_rows_that_are_refused(change, message):
  with pytest.raises(base.TaskError, match=message):
    tasks.make('classify').parse(ROW | change, 0)


def _load(path, **sizes):
  task = tasks.make('classify')
  sizes = {'num_selection': 2, 'num_validation': 0, 'num_test': 2} | sizes
  return data.load(task, seed=0, path=path, **sizes)


def test_tsv_and_jsonl_give_the_same_splits(tmp_path):
  rows = [
    {'text': f'It "is" {i}', 'label': ('negative', 'positive')[i % 2]}
    for i in range(20)
  ]
  one, other = tmp_path / 'rows.jsonl', tmp_path / 'rows.tsv'
  one.write_text('\n'.join(map(json.dumps, rows)))
  lines = [f'{row["label"]}\tx\t{row["text"]}' for row in rows]
  other.write_text('\r\n'.join(['label\tid\ttext', *lines, '']))
  assert _load(one) == _load(other)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('text\tlabel\nx\tpositive\nx\n', r'line 3: 1 cells for the columns'),
    ('text\ttext\n', 'line 1: columns.*one is named twice'),
    ('text\tlabel\nx\tgood\n', "line 2: label 'good' is not one of"),
    ('a\tb\n1\t2\n', "line 2: field 'text' is None"),
    ('text\tlabel\n\udcff\tpositive\n', 'line 2: not UTF-8'),
  ],
)
def test_files_that_are_refused(tmp_path, text, message):
  path = tmp_path / 'rows.tsv'
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  with pytest.raises(base.TaskError, match=message):
    _load(path)


# Scores.

CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=2)
MODEL = decoder.Decoder(CONFIG)
PREFIX = (7, 3, 44, 21)
SUFFIXES = ([2], [8, 30, 4], [50, 6], [40] * 7, [22, 4] * 2)  # one bucket, 8
EMPTY = (*PREFIX, 33, 12)
# One token each; and paths of a tree that part late, early and at once.
SHORT = ((5,), (17,), (60,))
LONG = ((5, 9, 13), (5, 9, 20, 2), (5, 30), (17,), (60, 9))
SIGMA = 0.1


def _labels(tokens, is_mean=False, empty=(), offsets=(), temperature=0.0):
  rule = sampling.sampler(5, temperature)
  return labels.Labels(tokens, is_mean, empty, offsets, rule)


def _naive(named, asked, suffixes=SUFFIXES, config=CONFIG):
  """Logs of shares [B, C] in float64: a whole pass for each label."""

  def score(prompt, label):
    logits = tiny.reference(config, named, [*prompt, *label])
    logits = logits - logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at = len(prompt) - 1 + np.arange(len(label))
    each = logs[at, list(label)]
    return each.mean() if asked.is_mean else each.sum()

  of = lambda prompt: np.array([score(prompt, x) for x in asked.tokens])
  found = np.stack([of([*PREFIX, *suffix]) for suffix in suffixes])
  if asked.empty:
    found = found - of(asked.empty)
  if asked.offsets:
    found = found + asked.offsets
  return found - np.log(np.exp(found).sum(-1, keepdims=True))


class _Setting:
  """Members of a family through the engine, as a run has them."""

  def __init__(self, family, devices=1, per_device=2):
    self.mesh = sharding.make_mesh(jax.devices()[:devices])
    spec = decoder.canonical_spec(CONFIG)
    factored = family.startswith('low_rank')
    base_params = sharding.replicate(self.mesh, tiny.params(CONFIG))
    settings = {'seed': 5, 'mesh': self.mesh, 'family': family}
    perturber = perturb.Perturber(
      base_params, spec, factored=factored, **settings
    )
    self.dense = perturb.Perturber(base_params, spec, **settings)
    self.engine = engine.Engine(
      MODEL, mesh=self.mesh, in_axes=perturber.in_axes, dtype=np.float32
    )
    self.members = Members(
      perturber, Population(5, 100, (SIGMA,)), self.mesh, per_device
    )

  def scored(self, asked, ids, suffixes=SUFFIXES, rows=2, draws=None):
    """Labels [M, r] and logs [M, r, C], in the order of the prompts."""
    batches = batching.batches(suffixes, range(len(suffixes)), rows, 63)
    step = engine.answer_all(self.engine, asked, PREFIX, batches)
    chunks = [found for *_, found in self.members.run(ids, step, draws)]
    found = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    number = np.full((len(ids), len(suffixes)), -9)
    logs = np.full((*number.shape, len(asked.tokens)), np.nan)
    for batch, answers in zip(batches, found, strict=True):
      live = np.flatnonzero(batch.live)
      number[:, batch.prompt[live]] = answers.tokens[:, live, 0]
      logs[:, batch.prompt[live]] = answers.logs[:, live]
    return number, logs

  def named(self, member):
    """A member's materialised weights by canonical name."""
    sigma = 0.0 if member == BASE else SIGMA
    buffers = self.dense.buffers(1)
    weights = self.dense.write([member], [sigma], buffers)
    return tiny.tensors(tiny.member(weights, 0), CONFIG)


_setting = functools.cache(_Setting)


def _assert_same_labels(got, want, logs):
  """Equal, but where the two likeliest are within a rounding."""
  best = np.sort(logs, axis=-1)
  gap = best[..., -1] - best[..., -2]
  assert (gap[got != want] < 1e-3).all()
  assert (got != want).mean() < 0.1


@pytest.mark.parametrize(
  ('family', 'asked'),
  [
    ('gaussian', _labels(SHORT)),
    pytest.param('gaussian', _labels(LONG), marks=pytest.mark.slow),
    ('low_rank:2', _labels(SHORT, empty=EMPTY, offsets=(0.5, 0.0, -0.25))),
    ('low_rank:2', _labels(LONG, is_mean=True, empty=EMPTY)),
  ],
)
def test_log_likelihoods_are_those_of_whole_passes(family, asked):
  setting, ids = _setting(family), [BASE, 4, 0]
  number, logs = setting.scored(asked, ids)
  want = np.stack([_naive(setting.named(i), asked) for i in ids])
  np.testing.assert_allclose(logs, want, rtol=0, atol=2e-4)
  np.testing.assert_allclose(np.exp(logs).sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(number, logs.argmax(-1))
  _assert_same_labels(number, want.argmax(-1), want)
  # They are worth comparing: members differ, and so do rows.
  assert np.abs(want[0] - want[1]).max() > 0.1
  assert np.ptp(want, axis=1).max() > 0.1


def test_calibration_takes_off_what_labels_have_without_a_text():
  setting = _setting('gaussian')
  plain, off = _labels(LONG), _labels(LONG, empty=EMPTY)
  alone = setting.scored(plain, [3], (EMPTY[len(PREFIX) :],))[1][:, 0]
  _, raw = setting.scored(plain, [3])
  _, logs = setting.scored(off, [3])
  want = raw - alone[:, None]
  want -= np.log(np.exp(want).sum(-1, keepdims=True))
  np.testing.assert_allclose(logs, want, rtol=0, atol=1e-4)
  # Behind the content-free prompt itself all labels are alike.
  _, same = setting.scored(off, [3], (EMPTY[len(PREFIX) :],))
  np.testing.assert_allclose(same, -np.log(len(LONG)), atol=1e-4)


@pytest.mark.parametrize('tokens', [SHORT, LONG])
def test_batches_and_padding_do_not_matter(tokens):
  setting, asked = _setting('gaussian'), _labels(tokens, empty=EMPTY)
  suffixes = (*SUFFIXES, [40] * 9)
  number, logs = setting.scored(asked, [2, 6], suffixes, rows=1)
  # In one batch all are padded to 16.
  other, theirs = setting.scored(asked, [2, 6], suffixes, rows=6)
  np.testing.assert_allclose(theirs, logs, rtol=0, atol=1e-4)
  _assert_same_labels(other, number, logs)
  order = [3, 1, 5, 4, 0, 2]
  turned = tuple(suffixes[i] for i in order)
  _, theirs = setting.scored(asked, [2, 6], turned, rows=6)
  np.testing.assert_allclose(theirs, logs[:, order], rtol=0, atol=1e-4)


def test_the_mesh_and_the_chunk_change_no_label():
  asked, ids = _labels(LONG, empty=EMPTY), [BASE, *range(9)]
  number, logs = _setting('gaussian').scored(asked, ids)
  for devices, per_device in ((8, 2), (1, 1)):
    setting = _setting('gaussian', devices, per_device)
    other, theirs = setting.scored(asked, ids)
    np.testing.assert_allclose(theirs, logs, rtol=0, atol=1e-4)
    _assert_same_labels(other, number, logs)


def test_equal_logs_are_decided_by_the_lower_label():
  logs = jnp.log(jnp.array([[[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]], jnp.float32))
  zero = jnp.zeros(1, jnp.int32)
  rows = sampling.row_words([0, 1])
  found = labels.choose(_labels(SHORT), logs, zero, zero, rows)
  np.testing.assert_array_equal(found.tokens[..., 0], [[0, 1]])
  broken = logs.at[0, 1, 2].set(jnp.nan)
  found = labels.choose(_labels(SHORT), broken, zero, zero, rows)
  np.testing.assert_array_equal(found.tokens[..., 0], [[0, labels.ABSTAIN]])


def test_samples_follow_the_shares_and_do_not_depend_on_each_other():
  setting, draws = _setting('gaussian'), np.arange(400)
  asked = _labels(SHORT, temperature=2.0)
  ids = [BASE] * len(draws)
  number, logs = setting.scored(asked, ids, draws=draws)
  assert (logs == logs[:1]).all()  # one forward pass for all
  share = np.exp(logs[0] / 2)
  share /= share.sum(-1, keepdims=True)
  counted = (number[:, :, None] == np.arange(3)).mean(0)
  # Five standard deviations.
  spread = 5 * np.sqrt(share * (1 - share) / len(draws))
  assert (np.abs(counted - share) < spread + 1e-3).all()
  few, _ = setting.scored(asked, [BASE] * 3, draws=[7, 2, 9])
  np.testing.assert_array_equal(few, number[[7, 2, 9]])


def test_draws_of_a_member_share_a_forward_pass(monkeypatch):
  setting, asked = _Setting('gaussian', 1, 1), _labels(SHORT, temperature=1.0)
  score, calls = engine.Engine.score, []

  def counting(*args):
    calls.append(args)
    return score(*args)

  monkeypatch.setattr(engine.Engine, 'score', counting)
  ids, draws = [BASE, BASE, BASE, 4, 4], [0, 1, 2, 0, 1]
  together, _ = setting.scored(asked, ids, rows=5, draws=draws)
  assert len(calls) == 2
  apart = [
    setting.scored(asked, [i], rows=5, draws=[draw])[0][0]
    for i, draw in zip(ids, draws, strict=True)
  ]
  np.testing.assert_array_equal(together, apart)


def test_labels_of_a_token_need_no_vocabulary():
  # The head is met by the labels' rows alone: nowhere is there a V.
  config = dataclasses.replace(CONFIG, vocab_size=977)
  prompts = decode.Prompts(
    np.ones((2, 8), np.int32), np.array([8, 3], np.int32), *[None] * 3
  )
  weights = jax.tree.map(lambda x: x[None], tiny.params(config))

  def text(tokens):
    fn = lambda w: labels.log_shares(
      decoder.Decoder(config), _labels(tokens), w, 0, None, None, prompts
    )
    return jax.jit(fn).lower(weights).as_text()

  assert 'x977xf32' not in text(SHORT).replace('1x977x20xf32', '')
  assert 'x977xf32' in text(LONG)


@pytest.mark.parametrize(
  ('tokens', 'message'),
  [
    (((1,), ()), 'label 1 has no tokens'),
    (((1, 2), (1, 2)), 'label 0 begin those of label 1'),
    (((1, 2, 3), (1, 2)), 'label 1 begin those of label 0'),
  ],
)
def test_labels_that_cannot_be_told_apart(tokens, message):
  with pytest.raises(ValueError, match=message):
    _labels(tokens)


# What a run makes of it.


def _tokenizer(**changes):
  """The tiny model's, in which nothing spells a z."""
  entries = tiny_gguf.metadata()
  tokens = ['zz' if x == 'z' else x for x in entries['tokenizer.ggml.tokens']]
  entries |= {'tokenizer.ggml.tokens': tokens, **changes}
  return Tokenizer.from_gguf(entries)


def _read(words, tokenizer, **settings):
  task = tasks.make('classify', words=words, **settings)
  return reading.decoding(task, tokenizer, vocab_size=400, max_new_tokens=8)


def test_words_become_tokens_and_the_empty_prompt():
  tokenizer = _tokenizer()
  asked = _read(('12', 'xy'), tokenizer, offsets=(0.0, 1.0))
  of = lambda text: tuple(map(tiny_gguf.token, text))
  assert asked.tokens == ((tiny_gguf.token('12'),), of('xy'))
  assert asked.offsets == (0.0, 1.0)
  assert not asked.is_mean
  task = tasks.make('classify', words=('12', 'xy'))
  prompt = task.prompt(base.Example(0, 'N/A', 'positive'))
  # The template of the file: bos, what the user says, and a mark.
  assert asked.empty == tuple(tokenizer.encode(f'<s>{prompt}>'))
  assert _read(('12', 'xy'), tokenizer, score='mean').empty == ()
  # A tokenizer that puts bos in front of every text does not before a label.
  with_bos = _tokenizer(**{'tokenizer.ggml.add_bos_token': True})
  assert _read(('12', 'xy'), with_bos).tokens == asked.tokens
  assert _read(('12', 'xy'), with_bos).empty == asked.empty


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('x', 'z'), "label 'z' has no tokens in this model"),
    (('x', 'y' * 9), "label 'yyyyyyyyy' has 9 tokens, above .* = 8"),
    (
      ('x', 'xy'),
      r"\('x', 'xy'\): the tokens of label 0 begin those of label 1",
    ),
    (('xz', 'x'), 'the tokens of label 0 begin those of label 1'),
  ],
)
def test_words_that_cannot_be_scored(words, message):
  with pytest.raises(base.TaskError, match=message):
    _read(words, _tokenizer())


def test_a_label_that_grows_into_the_prompt_is_warned_of(caplog):
  plain = _tokenizer(**{'tokenizer.chat_template': '{{ messages[0].content }}'})
  _read(('2', 'y'), plain, prompt_template='{text} 1')
  assert "label '2' is written with other tokens" in caplog.text
  assert "label 'y'" not in caplog.text


# The experiment.


def test_an_offset_is_the_middle_of_those_that_make_most_rows_right():
  lead = np.array([-3.0, -1.0, 0.5, 2.0, 3.0, 4.0])  # of the first label
  logs = np.stack([lead, np.zeros(6)], axis=1)
  # Right for all but one between 0.5 and 2, and between 3 and 4.
  gold = np.array([1, 1, 1, 0, 1, 0])
  assert experiment.fit_offset(logs, gold) == 3.5
  gold = np.array([1, 1, 1, 0, 0, 0])
  offset = experiment.fit_offset(logs, gold)
  assert offset == 1.25
  np.testing.assert_array_equal(logs[:, 1] + offset > logs[:, 0], gold)


def test_snippets_become_rows_of_text_and_label(tmp_path):
  source, path = tmp_path / 'x.tsv', tmp_path / 'x.jsonl'
  lines = ['1\t2.5\tFine.', '2\t-0.6\tMeh.', '3\t-1\tBad "it" is.']
  source.write_text('\n'.join([*lines, f'4\t3\t{"x" * 71}']))
  experiment.write_rows(source, path)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert rows == [
    {'text': 'Fine.', 'label': 'positive'},
    {'text': 'Bad "it" is.', 'label': 'negative'},
  ]


# What a run makes of it.

N, K = 4, 2


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The path of a model file."""
  path = tmp_path_factory.mktemp('model') / 'tiny.gguf'
  return str(tiny_gguf.write_answering(path))


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """The path of 200 short texts, two of three of them positive."""
  path = tmp_path_factory.mktemp('rows') / 'rows.tsv'
  rng = np.random.default_rng(0)
  lines = ['text\tlabel']
  for i in range(200):
    word = ''.join(rng.choice(list('abcdxy'), rng.integers(1, 12)))
    lines.append(f'{word} {i}\t{("positive", "negative", "positive")[i % 3]}')
  path.write_text('\n'.join(lines))
  return str(path)


def _config(model, rows, **settings):
  config = load_config(f'{made.ROOT / "configs" / "classify.py"}:quick')
  config.model.name, config.task.path = model, rows
  config.task.update(settings)
  config.task.prompt_template = 'Q {text}='
  config.data.num_selection, config.data.num_test = 40, 60
  config.population.size = N
  config.population.sigmas = (0.05, 0.2)
  config.ensemble.sizes = (1, K)
  config.run.keep_texts = 'all'
  return config


def _alone(config):
  """The same without controls that compile more programs."""
  config.controls.temperatures, config.controls.prompts = (), False
  return config


def _run(config, workdir, devices=1):
  console = Console(file=io.StringIO(), width=80)
  with made.devices(devices):
    job = run.Run(config, str(workdir), console)
    return job, job.finish()


@pytest.fixture(scope='module')
def finished(model, rows, tmp_path_factory):
  """A run by the default settings on one device: folder, job, summary."""
  folder = tmp_path_factory.mktemp('run') / 'work'
  return folder, *_run(_config(model, rows), folder)


def test_a_run_has_all_controls(finished):
  _, _, summary = finished
  systems = {row['id']: row for row in summary['test']['systems']}
  assert {
    'base', 'selected-mean', 'best-member', f'vote-{K}', 'unselected',
    'same-sigma', 'self-consistency-1', f'self-consistency-{K}', 'majority',
    'best-on-test', 'oracle', 'oracle-samples',
  } <= set(systems)  # fmt: skip
  assert summary['missing'] == []
  assert summary['choices']['prompt']['candidates']
  assert systems['base']['tokens_per_question'] == 1
  assert systems[f'vote-{K}']['against_base']['interval']
  plan = stored.load_plan(finished[0])
  share = np.mean([x.gold == 'positive' for x in plan.splits.test])
  majority = systems['majority']
  assert majority['name'] == 'always positive'
  assert (majority['passes'], majority['accuracy']['rate']) == (0, share)
  assert majority['against_base']
  assert majority['against_samples'] is None
  # One of two classes is all that it has right.
  assert majority['balanced_accuracy'] == 0.5
  assert all(0 <= x['balanced_accuracy'] <= 1 for x in systems.values())


def test_the_ledger_holds_what_scoring_gives(finished, model):
  folder, _, _ = finished
  held = stored.Stored(folder)
  block = held.held(held.plan.greedy, 'selection', [BASE, *range(N)])
  assert block.seen.all()
  assert block.answers == ('negative', 'positive')
  examples = held.plan.splits.selection
  assert block.rows.tolist() == [x.row_id for x in examples]
  gold = np.array([x.gold for x in examples])
  said = np.array(block.answers)[block.answer[:, :, 0]]
  np.testing.assert_array_equal(block.correct[:, :, 0], said == gold)
  np.testing.assert_array_equal(block.reward, block.correct)
  np.testing.assert_array_equal(np.array(block.texts).reshape(said.shape), said)
  assert (block.num_tokens == 1).all()
  assert not block.truncated.any()
  # By the model itself, without engine and batches.
  loaded = load(model)
  named = tiny.tensors(loaded.params, loaded.decoder.config)
  task = held.plan.task
  asked = reading.decoding(
    task, loaded.tokenizer, vocab_size=400, max_new_tokens=8
  )
  config = loaded.decoder.config

  def sums(example):
    text = loaded.tokenizer.render(task.prompt(example))
    prompt = loaded.tokenizer.encode(text)
    return _sums(config, named, prompt, asked.tokens)

  empty = sums(base.Example(0, 'N/A', 'positive'))
  raw = np.stack([sums(example) for example in examples]) - empty
  assert np.abs(raw[:, 0] - raw[:, 1]).min() > 1e-3
  np.testing.assert_array_equal(block.answer[0, :, 0], raw.argmax(-1))
  # It is worth comparing.
  assert 0 < block.correct[0].mean() < 1
  assert len({x.tobytes() for x in block.reward}) > 2


def _sums(config, named, prompt, tokens):
  """Sums of log-likelihoods of labels behind a prompt, in float64."""
  found = []
  for label in tokens:
    logits = tiny.reference(config, named, [*prompt, *label])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at = len(prompt) - 1 + np.arange(len(label))
    found.append(logs[at, list(label)].sum())
  return np.array(found)


def test_a_run_resumes_and_a_report_needs_no_model(
  finished, model, rows, monkeypatch, capsys
):
  folder, _, _ = finished
  job, _ = _run(_config(model, rows), folder)
  assert job._work.facts()['answers'] == 0
  before = json.loads((folder / 'summary.json').read_text())
  monkeypatch.setattr('thicket.machine.load', None)
  monkeypatch.setattr('thicket.data.load', None)
  assert report.main(['--workdir', str(folder)]) == 0
  assert json.loads((folder / 'summary.json').read_text()) == before
  assert 'always positive' in capsys.readouterr().out


@pytest.mark.slow
def test_devices_that_share_a_model_give_the_same_labels(
  finished, model, rows, tmp_path
):
  folder, _, _ = finished
  config = _alone(_config(model, rows))
  config.run.model_axis = 2
  job, _ = _run(config, tmp_path / 'shared', devices=4)
  assert dict(job._members._mesh.shape) == {'members': 2, 'model': 2}
  one, other = (
    stored.Stored(x).held(stored.load_plan(x).greedy, 'selection', range(N))
    for x in (folder, tmp_path / 'shared')
  )
  # Labels within a rounding of each other may differ.
  assert (one.answer == other.answer).mean() > 0.98


def test_likelihood_is_a_reward_of_its_own(finished, model, rows, tmp_path):
  config = _alone(_config(model, rows, objective='likelihood'))
  _, summary = _run(config, tmp_path / 'work')
  held = stored.Stored(tmp_path / 'work')
  block = held.held(held.plan.greedy, 'selection', [BASE, *range(N)])
  other = stored.Stored(finished[0])
  theirs = other.held(other.plan.greedy, 'selection', [BASE, *range(N)])
  # Labels and accuracy are as they were; rewards are logs of gold's share.
  np.testing.assert_array_equal(block.answer, theirs.answer)
  np.testing.assert_array_equal(block.correct, theirs.correct)
  assert (block.reward < 0).all()
  assert (block.reward >= -20).all()
  half = np.log(0.5)
  np.testing.assert_array_equal(block.reward > half, block.correct)
  scores = block.reward.mean((1, 2))
  assert summary['selection']['base']['score'] == pytest.approx(scores[0])
  ranked = sorted(range(N), key=lambda i: -scores[1 + i])[:K]
  assert [x['member'] for x in summary['selected']] == ranked


def test_a_written_answer_is_judged_as_one(model, rows, tmp_path):
  config = _alone(_config(model, rows, method='generate', words=('1', '2')))
  config.decode.max_new_tokens = 3
  _, summary = _run(config, tmp_path / 'work')
  held = stored.Stored(tmp_path / 'work')
  block = held.held(held.plan.greedy, 'test', [BASE])
  assert block.num_tokens.max() > 1
  extract = held.plan.task.extract
  for text, answer in zip(block.texts, block.answer.flat, strict=True):
    assert extract(text) == (block.answers[answer] if answer >= 0 else None)
  assert 'majority' not in {x['id'] for x in summary['test']['systems']}
