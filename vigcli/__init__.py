"""`vig`: put a vision network inside a latency budget on an iPhone."""

__version__ = "0.1.0"
