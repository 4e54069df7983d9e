"""Blocks that families share.

Letters in shape comments: B batch, C channels, H W rows and columns, N tokens, M nodes that neighbours are taken
from, K reach of the graph or neighbours of a token.
"""
