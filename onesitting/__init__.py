"""onesitting: a GPT, from raw text to a model you can chat with, in one sitting."""

__version__ = "0.1.0"
