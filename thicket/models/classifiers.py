# SPDX-License-Identifier: Apache-2.0
"""Small classifiers of images, written as anyone would write their own.

They know nothing of RandOpt; `adapters` makes them into what it takes. The
convolutional net is written twice, in Linen and in NNX, with the same names.
The transformer is a small ViT (arXiv 2010.11929) for questions of scale.

Axes: B images, P patches, D width, C classes.
"""

from __future__ import annotations

import flax.linen as nn
import jax
from flax import nnx

# (width, depth) of transformers, each with some three times the parameters of
# the one before: from 1,146 to 314,010 on 8 x 8 images.
LADDER = ((8, 1), (16, 1), (24, 2), (32, 3), (48, 4), (80, 4))


class ConvNet(nn.Module):
  """Two convolutions and a linear layer.

  Strides instead of pooling: on CPU 2.3 times as fast to train.

  Attributes:
    width: channels of the first convolution; the second has twice as many.
    num_classes: C.
  """

  width: int = 16
  num_classes: int = 10

  def setup(self):
    """Names the layers as `ConvNetNNX` does."""
    self.conv1 = nn.Conv(self.width, (3, 3), strides=(2, 2))
    self.conv2 = nn.Conv(2 * self.width, (3, 3), strides=(2, 2))
    self.head = nn.Dense(self.num_classes)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits of images: [B, 8, 8, 1] -> [B, C]."""
    x = nn.relu(self.conv1(x))
    x = nn.relu(self.conv2(x))
    return self.head(x.reshape(len(x), -1))


class ConvNetNNX(nnx.Module):
  """`ConvNet` in NNX, for 8 x 8 images."""

  def __init__(self, width: int = 16, num_classes: int = 10, *, rngs: nnx.Rngs):
    """Draws the weights; the arguments are those of `ConvNet`."""
    self.conv1 = nnx.Conv(1, width, (3, 3), strides=(2, 2), rngs=rngs)
    self.conv2 = nnx.Conv(width, 2 * width, (3, 3), strides=(2, 2), rngs=rngs)
    self.head = nnx.Linear(2 * 2 * 2 * width, num_classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits of images: [B, 8, 8, 1] -> [B, C]."""
    x = nnx.relu(self.conv1(x))
    x = nnx.relu(self.conv2(x))
    return self.head(x.reshape(len(x), -1))


class MLPClassifier(nn.Module):
  """One hidden layer on the pixels.

  Attributes:
    width: of the hidden layer.
    num_classes: C.
  """

  width: int = 64
  num_classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits of images: [B, 8, 8, 1] -> [B, C]."""
    x = nn.Dense(self.width, name='hidden')(x.reshape(len(x), -1))
    return nn.Dense(self.num_classes, name='head')(nn.relu(x))


class VisionTransformer(nn.Module):
  """Patches of 2 x 2 pixels through pre-norm transformer blocks.

  Attributes:
    width: D, a multiple of `num_heads`.
    depth: number of blocks.
    num_heads: of attention.
    num_classes: C.
  """

  width: int = 32
  depth: int = 3
  num_heads: int = 4
  num_classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits of images: [B, 8, 8, 1] -> [B, C]."""
    x = nn.Conv(self.width, (2, 2), (2, 2), name='patches')(x)
    x = x.reshape(len(x), -1, self.width)  # [B, P, D]
    place = nn.initializers.normal(0.02)
    x = x + self.param('positions', place, (1, *x.shape[1:]))
    for i in range(self.depth):
      x = Block(self.num_heads, name=f'block_{i}')(x)
    x = nn.LayerNorm(name='norm')(x).mean(axis=1)
    return nn.Dense(self.num_classes, name='head')(x)


class Block(nn.Module):
  """Self-attention, then an MLP of four times the width.

  Attributes:
    num_heads: of attention.
  """

  num_heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, P, D] -> [B, P, D]."""
    width = x.shape[-1]
    attention = nn.MultiHeadDotProductAttention(
      self.num_heads, name='attention'
    )
    x = x + attention(nn.LayerNorm(name='norm1')(x))
    y = nn.Dense(4 * width, name='up')(nn.LayerNorm(name='norm2')(x))
    return x + nn.Dense(width, name='down')(nn.gelu(y))
