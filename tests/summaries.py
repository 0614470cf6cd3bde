# SPDX-License-Identifier: Apache-2.0
"""A made-up summary with every part, for what is made from summaries."""

import numpy as np

from thicket import metrics

ROWS = 256
SIGMAS = (0.0005, 0.001, 0.002, 0.004)


def rate(share, rows=ROWS):
  """An accuracy with its interval."""
  count = round(share * rows)
  low, high = metrics.wilson(count, rows)
  return {'rate': count / rows, 'interval': [float(low), float(high)]}


def difference(found, reach=0.03, p=None, p_holm=None):
  """A difference with an interval of some reach."""
  return {
    'difference': found,
    'interval': [found - reach, found + 0.8 * reach],
    'p': p,
    'p_holm': p_holm,
  }


def paths(part, path=()):
  """Keys and indices to every field, of lists to those of the first item."""
  if isinstance(part, dict):
    for key, value in part.items():
      yield (*path, key)
      yield from paths(value, (*path, key))
  elif isinstance(part, list):
    for value in part[:1]:
      yield from paths(value, (*path, 0))


def full(members=64, k=10, seed=0):
  """A summary of `members` members, K of which are selected."""
  rng = np.random.default_rng(seed)
  sigma = np.array(SIGMAS)[np.arange(members) % len(SIGMAS)]
  true = 0.3 + 0.02 * rng.standard_normal(members) - 20 * np.square(sigma) * 300
  score = rng.binomial(200, np.clip(true, 0, 1)) / 200
  test = rng.binomial(ROWS, np.clip(true, 0, 1)) / ROWS
  again = rng.binomial(200, np.clip(true, 0, 1)) / 200
  dropped = np.flatnonzero(score < np.quantile(score, 0.1))
  top = np.argsort(-score, kind='stable')[:k].tolist()
  others = [i for i in range(members) if i not in top][: 2 * k]
  each = [
    {
      'member': i,
      'sigma': float(sigma[i]),
      'score': None if i in dropped else float(score[i]),
      'rows': 50 if i in dropped else 200,
    }
    for i in range(members)
  ]
  tested = [
    {
      'member': i,
      'sigma': float(sigma[i]),
      'score': each[i]['score'],
      'validation_score': float(again[i]),
      'test_accuracy': float(test[i]),
      'selected': i in top,
    }
    for i in sorted([*top, *others])
  ]
  return {
    'recipe': {'population': {'seed': 0, 'sigmas': list(SIGMAS)}, 'task': 'x'},
    'run': {
      'task': 'gsm8k',
      'model': 'SmolLM2-135M-Instruct',
      'N': members,
      'K': k,
      'sizes': [1, 5, k],
      'sigmas': list(SIGMAS),
      'antithetic': False,
      'family': 'gaussian',
      'scale': 'absolute',
      'seed': 0,
      'prompt': 'What is {question}? Answer with a number.',
    },
    'selection': {
      'rows': 200,
      'base': {
        'score': 0.3,
        'accuracy': rate(0.3, 200),
        'lenient_accuracy': 0.35,
        'released_accuracy': 0.31,
      },
      'members': {
        'count': members,
        'mean_score': float(score.mean()),
        'best_score': float(score.max()),
        'mean_accuracy': 0.29,
        'mean_lenient_accuracy': 0.34,
        'mean_released_accuracy': 0.305,
        'per_sigma': [
          {
            'sigma': s,
            'members': int((sigma == s).sum()),
            'mean_score': float(score[sigma == s].mean()),
            'best_score': float(score[sigma == s].max()),
            'above_base': rate(float((score[sigma == s] > 0.3).mean()), 16)
            | {'count': int((score[sigma == s] > 0.3).sum()), 'of': 16},
          }
          for s in SIGMAS
        ],
        'each': each,
      },
      'cost': {'answers': 200 * members, 'tokens': 200 * 120 * members},
      'race': {
        'used': True,
        'z': 1.64,
        'rows': [50, 100, 200],
        'saved': 0.274,
        'recall': None,
      },
    },
    'selected': [x for i in top for x in tested if x['member'] == i],
    'tested': tested,
    'choices': {
      'temperature': {
        'chosen': 0.7,
        'scores': {'0.3': 0.335, '0.7': 0.35, '1': 0.28},
      },
      'prompt': {
        'chosen': '{question} =',
        'number': 2,
        'candidates': [
          {
            'template': 'What is {question}? Answer with a number.',
            'score': 0.3,
          },
          {'template': '{question} =', 'score': 0.34},
        ],
      },
    },
    'test': {'rows': ROWS, 'systems': _systems(members, k)},
    'curves': {
      'size': {
        'ensemble': _curve(k, 0.33, 0.04),
        'self_consistency': _curve(k, 0.26, 0.12),
        'temperature': 0.7,
      },
      'population': [
        {
          'n': n,
          'k': k,
          'accuracy': rate(0.31 + 0.02 * i),
          'against_base': difference(0.02 + 0.02 * i),
          'new_test_answers': 0 if n == members else 7 * ROWS,
          'selection_split': {
            'rate': 0.33 + 0.03 * i,
            'interval': [0.31 + 0.03 * i, 0.355 + 0.03 * i],
          },
        }
        for i, n in enumerate((members // 4, members // 2, members))
      ],
    },
    'quality': {
      'per_sigma': [
        {
          'sigma': s,
          'members': 16,
          'split_half': None if s == SIGMAS[0] else 0.41 + 40 * s,
          'spearman': None
          if s == SIGMAS[0]
          else {'spearman': 0.38, 'interval': [-0.14, 0.74]},
        }
        for s in SIGMAS
      ],
      'split_half': 0.47,
      'observed_gain': 0.052,
      'expected_gain': 0.018,
      'validation_gain': 0.021,
      'test_gain': difference(0.016, 0.02),
    },
    'repairs': {
      'fixed': {'format': 27, 'reasoning': 9},
      'regressed': {'format': 6, 'reasoning': 4},
      'items': [_item(i) for i in range(46)],
    },
    'verdict': [
      f'The vote of {k} is above the base by 8.2 points [+4.7, +11.3].',
      'It is not distinguishable from as many samples of the base '
      '(+2.0 points [-1.2, +4.7]).',
      'The selected members are not distinguishable from the base on fresh '
      'questions (+1.6 points [-0.4, +3.2]).',
    ],
    'near_duplicates': {'count': 0, 'rows': 384, 'examples': []},
    'missing': ['all 64 members on validation: 3200 of 12800 answers stored'],
    'work': {
      'generated': {'answers': 31_744, 'tokens': 3_809_280},
      'devices': '1 x NVIDIA H100',
    },
  }


def _curve(k, start, gain):
  found = []
  for size in range(1, k + 1):
    share = start + gain * (1 - 1 / size)
    found.append(
      {
        'k': size,
        'accuracy': rate(share),
        'against_base': difference(share - 0.3),
      }
    )
  return found


def _systems(members, k):
  spent = {'answers': 200 * members, 'tokens': 24_000 * members}
  rows = []

  def add(name, shown, kind, passes, share, base=None, samples=None, **more):
    rows.append(
      {
        'id': name,
        'name': shown,
        'kind': kind,
        'passes': passes,
        'tokens_per_question': 118.4 * passes,
        'selection': {'answers': 0, 'tokens': 0}
        if kind in ('base', 'bound')
        else spent,
        'accuracy': rate(share),
        'lenient_accuracy': share + 0.06,
        'balanced_accuracy': None,
        'released_accuracy': share + 0.01 if passes == 1 else None,
        'abstention_rate': None if kind == 'bound' else 0.027,
        'without_vote': 0,
        'against_base': base,
        'against_samples': samples,
      }
      | more
    )

  is_sure = {'p': 0.0004, 'p_holm': 0.0036}
  is_open = {'p': 0.2101, 'p_holm': 0.8404}
  add('base', 'base, greedy', 'base', 1, 0.301)
  add(
    'selected-mean', f'mean of {k} selected', 'ensemble', 1, 0.317,
    difference(0.016, 0.02),
  )  # fmt: skip
  add(
    'best-member', 'best on selection', 'ensemble', 1, 0.328,
    difference(0.027, 0.03, **is_open),
    difference(0.055, 0.04, **is_open),
  )  # fmt: skip
  for size, share in ((5, 0.36), (k, 0.383)):
    add(
      f'vote-{size}', f'vote of best {size}', 'ensemble', size, share,
      difference(share - 0.301, 0.035, **is_sure),
      difference(0.02, 0.03, **is_open),
      without_vote=2,
    )  # fmt: skip
  for size, share in ((1, 0.27), (5, 0.34), (k, 0.363)):
    add(
      f'self-consistency-{size}', f'{size} samples at T = 0.7', 'sampling',
      size, share,
      difference(share - 0.301, 0.04, **(is_sure if size == k else is_open)),
    )  # fmt: skip
  for name, shown, share in (
    (f'samples-{0.3:g}', f'{k} samples at T = 0.3', 0.34),
    ('unselected', f'vote of {k} unselected', 0.33),
    ('same-sigma', f'vote of {k} of sigma 0.001', 0.34),
    ('prompt', 'prompt 2, greedy', 0.34),
    (f'prompt-self-consistency-{k}', f'prompt 2, {k} samples', 0.37),
    (f'prompt-vote-{k}', f'prompt 2, vote of best {k}', 0.39),
  ):
    add(
      name, shown, 'control', 1 if name == 'prompt' else k, share,
      difference(share - 0.301, 0.035, **is_open),
      None if name == 'prompt' else difference(share - 0.363, 0.03, **is_open),
    )  # fmt: skip
  add('best-on-test', 'best member on test', 'bound', 1, 0.35)
  add('oracle', f'any of {k} selected right', 'bound', k, 0.55)
  add('oracle-samples', f'any of {k} samples right', 'bound', k, 0.62)
  return rows


def _item(i):
  is_fixed = i < 36
  right, wrong = f'So the answer is {i}.\n#### {i}', f'The answer is\n{i + 1}.'
  base, vote = (wrong, right) if is_fixed else (right, wrong)
  return {
    'row': 1000 + i,
    'question': f'Ann has {i} apples and gives none away. How many are left?',
    'gold': str(i),
    'change': 'fixed' if is_fixed else 'regressed',
    'kind': 'format' if i % 4 else 'reasoning',
    'base': {'answer': None if is_fixed else str(i), 'text': base},
    'vote': {'answer': str(i), 'text': vote, 'count': 7, 'of': 10},
  }
