"""What the contract's encoders are made of; the one line to change where those names move.

`tiny` itself must stay as it is, byte for byte: its source is part of the key of the stores below `written/`.
"""

from pipeline.encoders.base import Encoder, EncoderKey, Layer, LoadOptions

__all__ = ["Encoder", "EncoderKey", "Layer", "LoadOptions"]
