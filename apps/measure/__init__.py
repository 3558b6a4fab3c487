"""How everything is measured: turns, intervals, records of runs, and what is made of them."""
