"""Exit rules fitted to a text: linear probes, thresholds for a goal, and the page that shows the trade.

``probe`` fits, ``search`` chooses thresholds, ``report`` draws. None of them runs a model: they read what was collected
at every depth, tables [R, N] over R depths and N tokens.
"""
