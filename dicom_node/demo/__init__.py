"""The demonstration: a real PACS, a real node and real studies, from C-STORE to a caught forgery.

`story` tells it step by step; the other modules give it children, a PACS, the network,
forgeries and pictures.
"""
