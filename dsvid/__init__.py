"""dsvid trains large video transformers with DeepSpeed. This file holds the version and nothing heavy."""

__version__ = "0.1.0"
