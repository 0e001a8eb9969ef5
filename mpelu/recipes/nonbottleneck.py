"""CIFAR-10, the MPELU non-bottleneck block of Fig. 4b: a ResNet-110 with nothing behind the additions.

Source:   Li et al., arXiv:1606.00305, section 5.2, Table 10. No code of this net was released. Not stated, and chosen
          here: the start (1, 1), shortcuts of type A, and nothing behind the last block. The paper tried several
          multipliers of learning rate and decay of alpha and beta and kept the best; which is unknown, so that it is
          5 and 1, as everywhere in its text.
Target:   Table 10, depth 110: 5.47 % mean test error (ReLU ResNet-110: 6.61 %). The other depths are unknown.
Command:  mpelu reproduce table10
Duration: 78,200 steps of 128 images, at scale cpu 200 (digits: 60): "mpelu recipes" prints the measured time of a step
          times the steps, 2 to 3 days on a core of a CPU. An H200 was not measured.
At cpu:   20 layers instead of 110, images of 16 pixels, 5,000 of them, 5 epochs. The batch, the learning rate, the
          places of its drops, the decay and the blocks are kept.
"""

import dataclasses

from mpelu.recipes.resnet import SHORT, STANDARD, shortened
from mpelu.recipes.row import Row, Target

CPU = {**SHORT, "model": "nonbottleneck20"}
FACTORS = shortened(110, 20)
MPELU = dataclasses.replace(STANDARD, model="nonbottleneck110")

ROWS = (
    Row(
        "nonbottleneck110-mpelu",
        "MPELU non-bottleneck ResNet-110 (Fig. 4b)",
        MPELU,
        cpu=CPU,
        factors=FACTORS,
        targets=(Target("table10", {"network": "MPELU ResNet non-bottleneck", "depth": "110"}, "mean_err"),),
    ),
    Row(
        "nonbottleneck110-relu",
        "the same block with ReLU (not in the paper)",
        dataclasses.replace(MPELU, activation="relu", alpha=None, beta=None),
        cpu=CPU,
        factors=FACTORS,
    ),
)
