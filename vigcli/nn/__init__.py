"""Blocks that families share.

Letters in shape comments: B batch, C channels, H W rows and columns, N tokens, K reach of the graph.
"""
