"""Models: masked autoencoder and vision transformer of the VideoMAE family, InternVideo2. No DeepSpeed, no ranks."""

from dsvid.models.attention import attend, choose_backend
from dsvid.models.init import init_weights, initial_value
from dsvid.models.internvideo2 import InternVideo2
from dsvid.models.mae import MaskedAutoencoder
from dsvid.models.sizes import ENCODERS, DecoderSize, EncoderSize, decoder_size, encoder_size
from dsvid.models.vit import VisionTransformer

__all__ = [
    "ENCODERS",
    "DecoderSize",
    "EncoderSize",
    "InternVideo2",
    "MaskedAutoencoder",
    "VisionTransformer",
    "attend",
    "choose_backend",
    "decoder_size",
    "encoder_size",
    "init_weights",
    "initial_value",
]
