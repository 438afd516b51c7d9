"""A model and images in, a verified small file out: what `kdprune compress` does.

It writes a recipe that says what is done, runs it, and tells what came of it. Whatever
it does, a recipe can do.
"""

from kdprune.compression.api import compress, compress_request, initialize
from kdprune.compression.request import DEVICES, Request
from kdprune.compression.verdict import Compressed

__all__ = [
    "DEVICES",
    "Compressed",
    "Request",
    "compress",
    "compress_request",
    "initialize",
]
