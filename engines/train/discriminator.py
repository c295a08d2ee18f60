"""The adversary: a small network that tells marked from unmarked, patch by patch.

It sees display values through fixed high-pass filters, since a mark of 44 dB is invisible beside
what the frame shows: horizontal and vertical second differences, the 3 x 3 residual of steganalysis
(the frame less its best prediction from eight neighbours), each cut at 8 grey levels so that edges
do not rule; and the local mean, which says what is plausible there. Four strided convolutions make
of that one value per 16 x 16 samples, positive for unmarked. Hinge loss.

Reference
---------
Fridrich, Kodovsky, "Rich models for steganalysis of digital images", IEEE TIFS 7(3), 2012.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FILTERS = (
    ((0, 0, 0), (0.5, -1, 0.5), (0, 0, 0)),
    ((0, 0.5, 0), (0, -1, 0), (0, 0.5, 0)),
    ((-0.25, 0.5, -0.25), (0.5, -1, 0.5), (-0.25, 0.5, -0.25)),
)
CUT = 8 / 255


def high_pass(x: Tensor, filters: Tensor) -> Tensor:
    """Return residuals in units of 1, -1..1, and the local mean: ``(batch, 4, rows, columns)``."""
    with torch.autocast(x.device.type, enabled=False):
        padded = F.pad(x.float(), (1, 1, 1, 1), mode="replicate")
        residuals = F.conv2d(padded, filters).clamp(-CUT, CUT) / CUT
        return torch.cat([residuals, F.avg_pool2d(padded, 3, 1)], 1)


class Discriminator(nn.Module):
    """Patches of display frames ``(batch, 1, 256, 256)`` to ``(batch, 1, 16, 16)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("filters", torch.tensor(_FILTERS)[:, None], persistent=False)
        self.net = nn.Sequential(
            nn.Conv2d(4, width, 5, stride=2, padding=2), nn.LeakyReLU(0.1),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.1),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.1),
            nn.Conv2d(2 * width, 1, 3, stride=2, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(high_pass(x, self.filters))
        return y.float()


def told_apart(network: Discriminator, cover: Tensor, marked: Tensor) -> Tensor:
    """Return what the discriminator wants small."""
    return F.relu(1 - network(cover)).mean() + F.relu(1 + network(marked)).mean()
