"""Frame codecs: one module per library, each with ``decode`` (and ``encode`` where there is one).

``decode(code, form) -> (codes, precision)``: the frame's sample containers as unsigned integers,
``form.shape``, and how many bits of them the code stream carries. ``encode(codes, form, precision)
-> bytes`` is its exact inverse. Both raise PixelError, and nothing of the libraries' own; a
MemoryError is no fault of the frame and passes as it is.
"""
