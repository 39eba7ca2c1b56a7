"""`rerankd doctor`: is all there that rerankd needs on this machine, and what could be better?

observe.py looks at the machine, and has each backend look at what matters to it; checks.py (pure) makes a
verdict and a next step of what was seen.
"""
