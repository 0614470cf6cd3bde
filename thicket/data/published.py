# SPDX-License-Identifier: Apache-2.0
"""Data sets that can be fetched by name, and where they lie once they are.

Rows keep their fields as published, so that a task reads them from here as it
reads them from the file.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

from thicket.models import hub

VERSION = '1.0.0'  # of the folder's layout; the rows have hashes


@dataclasses.dataclass(frozen=True)
class File:
  """JSONL of one part of a data set.

  Attributes:
    part: 'train' or 'test'.
    url: where its publisher has it; what ends in .gz is unpacked.
    sha256: of the unpacked file, in hex digits.
    num_rows: rows of the file.
  """

  part: str
  url: str
  sha256: str
  num_rows: int


@dataclasses.dataclass(frozen=True)
class Published:
  """A data set as its authors published it.

  Attributes:
    title: what it is, in a line.
    homepage: where to read about it.
    licence: its SPDX identifier.
    citation: BibTeX.
    fields: the type of each field of a row, str or int.
    files: one for each part.
  """

  title: str
  homepage: str
  licence: str
  citation: str
  fields: dict[str, type]
  files: tuple[File, ...]


_GSM8K = (
  'https://raw.githubusercontent.com/openai/grade-school-math/master/'
  'grade_school_math/data/'
)

PUBLISHED = {
  'gsm8k': Published(
    title='grade-school word problems',
    homepage='https://github.com/openai/grade-school-math',
    licence='MIT',
    citation="""@article{cobbe2021gsm8k,
  title={Training Verifiers to Solve Math Word Problems},
  author={Cobbe, Karl and Kosaraju, Vineet and Bavarian, Mohammad and Chen,
    Mark and Jun, Heewoo and Kaiser, Lukasz and Plappert, Matthias and Tworek,
    Jerry and Hilton, Jacob and Nakano, Reiichiro and Hesse, Christopher and
    Schulman, John},
  journal={arXiv preprint arXiv:2110.14168},
  year={2021}
}""",
    fields={'question': str, 'answer': str},
    files=(
      File(
        'train',
        _GSM8K + 'train.jsonl',
        '17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465',
        7473,
      ),
      File(
        'test',
        _GSM8K + 'test.jsonl',
        '3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14',
        1319,
      ),
    ),
  ),
  'math500': Published(
    title='500 test problems of MATH, competition mathematics',
    homepage='https://huggingface.co/datasets/HuggingFaceH4/MATH-500',
    licence='MIT',  # of MATH and of PRM800K, which chose the 500
    citation="""@article{hendrycks2021math,
  title={Measuring Mathematical Problem Solving With the MATH Dataset},
  author={Hendrycks, Dan and Burns, Collin and Kadavath, Saurav and Arora,
    Akul and Basart, Steven and Tang, Eric and Song, Dawn and Steinhardt,
    Jacob},
  journal={NeurIPS},
  year={2021}
}
@article{lightman2023verify,
  title={Let's Verify Step by Step},
  author={Lightman, Hunter and Kosaraju, Vineet and Burda, Yura and Edwards,
    Harri and Baker, Bowen and Lee, Teddy and Leike, Jan and Schulman, John
    and Sutskever, Ilya and Cobbe, Karl},
  journal={arXiv preprint arXiv:2305.20050},
  year={2023}
}""",
    fields={
      'problem': str,
      'solution': str,
      'answer': str,
      'subject': str,
      'level': int,
      'unique_id': str,
    },
    files=(
      File(
        'test',
        'https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/main/'
        'test.jsonl',
        '35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132',
        500,
      ),
    ),
  ),
  'humaneval': Published(
    title='164 Python functions to complete, with tests',
    homepage='https://github.com/openai/human-eval',
    licence='MIT',
    citation="""@article{chen2021codex,
  title={Evaluating Large Language Models Trained on Code},
  author={Chen, Mark and Tworek, Jerry and Jun, Heewoo and Yuan, Qiming and
    Ponde de Oliveira Pinto, Henrique and others},
  journal={arXiv preprint arXiv:2107.03374},
  year={2021}
}""",
    fields={
      'task_id': str,
      'prompt': str,
      'entry_point': str,
      'canonical_solution': str,
      'test': str,
    },
    files=(
      File(
        'test',
        'https://raw.githubusercontent.com/openai/human-eval/master/data/'
        'HumanEval.jsonl.gz',
        '1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2',
        164,
      ),
    ),
  ),
}


def data_folder() -> pathlib.Path:
  """Where data is kept that was fetched; the folder may not exist yet."""
  return hub.cache_folder() / 'data'


def prepared(
  name: str, data_dir: str | os.PathLike[str] | None = None
) -> pathlib.Path | None:
  """The folder of a data set in `data_dir`, if it has been prepared there."""
  parent = data_folder() if data_dir is None else pathlib.Path(data_dir)
  folder = parent / name / VERSION
  return folder if (folder / 'dataset_info.json').is_file() else None
