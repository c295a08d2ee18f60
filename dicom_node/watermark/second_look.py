"""R2 as the watermark asks it, and D1 where a model has none.

What a network whitened is laid beside its mirror images where the carrier is folded: there its
products with the patterns are those of a folded carrier.
"""

from __future__ import annotations

import numpy as np

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.reader import open_reader
from dicom_node.watermark.covers import unfolded


class SecondLook:
    """Whitens pictures of frames whose carrier is folded so often.

    Parameters
    ----------
    folds
        1, or 2: of small frames.

    Attributes
    ----------
    side
        Of the pictures it takes, mirror images not counted.
    """

    def __init__(self, engine: RobustEngine, folds: int = 1) -> None:
        self._engine, self._folds = engine, folds
        self._reader = open_reader(engine.model_id, folds=folds)
        self.side = self._reader.side if self._reader is not None else engine.side // folds

    def whiten(self, pictures: Float32) -> Float32:
        """Return what the patterns are looked for in, ``(batch, samples of D1)``.

        Parameters
        ----------
        pictures
            Display values 0..1, ``(batch, side, side)``.
        """
        engine = self._engine
        if self._reader is None:
            mirrored = [unfolded(picture, engine.side) for picture in pictures]
            return engine.whiten(np.stack(mirrored)[:, None])
        whitened = self._reader.whiten(pictures[:, None])
        if self._folds == 1:
            return whitened
        planes = whitened.reshape(-1, engine.side // self._folds, engine.side // self._folds)
        return np.stack([unfolded(plane, engine.side).reshape(-1) for plane in planes])
