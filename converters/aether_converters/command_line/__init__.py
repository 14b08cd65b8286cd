"""The command `aethernet`. In: arguments. Out: printed text and an exit status.

One module a command holds its help text, options, function and printing; what several share stands
in `arguments`, `*_options`, `terminal` and `tables`.
"""
