# SPDX-License-Identifier: Apache-2.0
"""What an accelerator can do at best, and what share of it is assumed.

Peaks are datasheet numbers or derived from them, as the note beside each says.
The shares are assumptions, not measurements on these devices; the experiment
prints how far the answer moves with each of them.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator; operations and bytes a second.

  `integer` and `vector` count 32-bit elementwise instructions, an addition and
  a multiplication being two.
  """

  name: str
  products: float  # bfloat16 FLOP/s of dense products
  integer: float  # 32-bit integer instructions
  vector: float  # float32 elementwise instructions
  bandwidth: float  # of the device's memory
  memory: float  # bytes
  link: float  # bytes a second of one link, one way
  ring_links: int  # links that a ring of more than two devices uses each way
  hop_s: float  # latency of one step of a ring
  max_model_axis: int  # devices that such links join
  host_bandwidth: float  # to its host
  devices_per_host: int


H100 = Device(
  name='H100 SXM',
  products=989.4e12,  # datasheet, without sparsity
  integer=132 * 64 * 1.98e9,  # SMs x integer lanes x boost clock: half of the
  # white paper's 33.5 integer TOPS, which counts a multiply-add as two
  vector=132 * 128 * 1.98e9,  # half of the datasheet's 67 float32 TFLOP/s
  bandwidth=3.35e12,  # datasheet
  memory=80e9,  # datasheet
  link=450e9,  # NVLink 4: 900 GB/s in both directions together
  ring_links=1,  # a switch: that one number holds whatever the ring
  hop_s=1e-6,  # assumed
  max_model_axis=8,  # one host; beyond it the network is 10x slower
  host_bandwidth=25e9,  # assumed, PCIe 5 x16 is 64 GB/s at best
  devices_per_host=8,
)
V5E = Device(
  name='TPU v5e',
  products=197e12,  # datasheet
  # Assumed: 8 x 128 lanes of four ALUs ("How to scale your model", TPUs) at
  # 1.5 GHz, the clock at which four 128 x 128 MXUs make 197 TFLOP/s. The same
  # ALUs serve integers and floats, and a rotation takes three operations.
  integer=8 * 128 * 4 * 1.5e9,
  vector=8 * 128 * 4 * 1.5e9,
  bandwidth=819e9,  # datasheet
  memory=16e9,  # datasheet
  link=50e9,  # datasheet: 1,600 Gbit/s a chip over four links
  ring_links=2,  # a ring through a rectangle of chips, used both ways round
  hop_s=1e-6,  # assumed; "How to scale your model" has 0.5 to 1
  max_model_axis=256,  # a pod, 16 x 16
  host_bandwidth=15e9,  # "How to scale your model", PCIe
  devices_per_host=8,
)
DEVICES = (H100, V5E)


@dataclasses.dataclass(frozen=True)
class Shares:
  """Shares of the peaks that are reached.

  The first two are what experiments/throughput measured of GEMM peak on a CPU,
  for want of measurements on an accelerator.
  """

  prefill: float = 0.76  # of `products`
  decode: float = 0.60  # of `products`
  memory: float = 0.80  # of `bandwidth`
  vector: float = 0.50  # of `integer` and `vector`
  network: float = 0.75  # of `link`; NCCL on NVLink is reported at 0.77
