# SPDX-License-Identifier: Apache-2.0
"""RandOpt (arXiv 2603.12228) on a language model, sized for a laptop's CPU.

  python -m thicket.main --config=configs/llm.py          under 8 minutes
  python -m thicket.main --config=configs/llm.py:quick    under a minute

The paper's own size is N = 5000, K = 50 and 200 selection rows; enlarge any
run by --config.population.size: members already scored are not scored again.
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The default run; arg 'quick' is the smallest that shows every step."""
  if arg not in ('', 'quick'):
    raise ValueError(f'configs/llm.py:{arg}: the only variant is quick')
  quick = arg == 'quick'
  config = ml_collections.ConfigDict()
  config.seed = 0  # of population and data order

  # ORGANISATION/MODEL of Hugging Face's hub, the path of a .gguf file or of a
  # folder with safetensors, or a key of thicket.models.hub.MODELS.
  config.model = ml_collections.ConfigDict()
  config.model.name = 'smollm2-135m-instruct'
  # A branch, a tag or a commit of the hub; default main. The commit is kept
  # with the run, which another one does not resume.
  config.model.revision = config_dict.placeholder(str)
  config.model.dtype = 'float32'  # or bfloat16

  # What the task needs beyond its defaults: its prompt, its data.
  config.task = ml_collections.ConfigDict()
  config.task.name = 'arithmetic'
  config.task.prompt_template = config_dict.placeholder(str)
  # A file or a folder; else where `python -m thicket.data fetch` keeps it.
  config.task.path = config_dict.placeholder(str)
  config.task.source = config_dict.placeholder(str)  # e.g. tfds:NAME
  # Of your own rows (task jsonl): exact, numeric, contains, MODULE:FUNCTION.
  config.task.reward = config_dict.placeholder(str)
  config.task.stop = config_dict.placeholder(tuple)  # e.g. ('\n',)
  # Of reasoning_gym:NAME: how many rows are made, and its settings as JSON.
  config.task.size = config_dict.placeholder(int)
  config.task.options = config_dict.placeholder(str)

  # Disjoint rows; only selection may be chosen on.
  config.data = ml_collections.ConfigDict()
  config.data.num_selection = 16 if quick else 64
  config.data.num_validation = 0
  config.data.num_test = 16 if quick else 128

  config.population = ml_collections.ConfigDict()
  config.population.size = 4 if quick else 16  # N
  # SmolLM2 is unharmed at 1e-3 and breaks at 1e-2; larger models want less
  # (5e-4, 1e-3 and 2e-3 in the paper's scripts).
  config.population.sigmas = (1e-3, 2e-3, 4e-3)
  # Or rademacher; or low_rank (low_rank:R), whose members share one product
  # with the base: cheaper by far where several fit, and other members.
  config.population.family = 'gaussian'
  # Or relative to each tensor's RMS, or modular: then sigma is a radius.
  config.population.scale = 'absolute'
  config.population.antithetic = False  # members come in pairs, + and - noise
  config.population.only = ''  # perturb tensors whose name matches this
  config.population.skip = ''  # and leave those that match this

  config.ensemble = ml_collections.ConfigDict()
  config.ensemble.sizes = (1, 2) if quick else (1, 3, 5)  # K of each vote

  # How the K are found among N; by default the K best scores.
  config.selection = ml_collections.ConfigDict()
  config.selection.rerank = 0  # this many best are compared on validation rows
  config.selection.race = False  # drop members that cannot reach the top K
  config.selection.race_z = 1.64  # width of the intervals that decide so
  config.selection.race_rows = ()  # when; default: whole batches, doubling

  # What the ensemble is compared with, in the same run on the same rows.
  config.controls = ml_collections.ConfigDict()
  # Of self-consistency; () for none, several to choose on selection. SmolLM2
  # is best near 0.2 and loses half at 0.7, which suits larger models.
  config.controls.temperatures = (0.3,)
  config.controls.top_k = 0  # of its sampling; 0: all tokens
  config.controls.top_p = 1.0
  config.controls.unselected = True  # vote of K members nobody selected
  config.controls.same_sigma = True  # of K random ones of the winning sigma
  config.controls.prompts = True  # choose among the task's prompts
  config.controls.prompt_search = 0  # N of a search under the chosen prompt
  # N of the curve; those between K and N count.
  config.controls.population_sizes = (8, 32, 128, 512, 2048)
  config.controls.validation = False  # score all members on validation rows

  config.decode = ml_collections.ConfigDict()
  config.decode.max_new_tokens = config_dict.placeholder(int)  # else the task's
  config.decode.rows = 16 if quick else 64  # prompts in a batch

  # How work is cut. Not part of the recipe: change it between restarts. (With
  # other members_per_device products have other shapes: where two tokens are
  # within a rounding of each other, a new member may choose the other one.)
  config.run = ml_collections.ConfigDict()
  config.run.members_per_device = 1
  config.run.model_axis = 1  # devices that share one model, if it is large
  config.run.members_per_range = 8  # saved together; a kill loses at most these
  config.run.keep_texts = 'test'  # which responses: none, test or all
  config.run.judge_processes = 0  # that judge; for rewards slower than a model
  return config
