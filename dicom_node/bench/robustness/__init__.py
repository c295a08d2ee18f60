"""What the robust mark survives: every attack of the suite on real frames, blind, beside its peers.

    samples ──mark, export──▶ subjects ──attack, read──▶ results ──▶ tables, JSON, plots

A frame is marked once by the node's own code and attacked many times. Both steps are spread over
worker processes; between them lie files.
"""
