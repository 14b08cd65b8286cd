"""Networks in int8. In: a float network. Out: a plan of grids, and a graph with them in it.

Ranges come from training or from pictures; `planning` decides which layers are rounded, `graph`
writes them, `check` says what a runtime makes of them.
"""
