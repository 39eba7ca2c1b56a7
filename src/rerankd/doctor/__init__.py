"""`rerankd doctor`: is all there that rerankd needs on this machine, and what could be better?

observe.py looks at the machine, checks.py (pure) makes a verdict and a next step of what was seen, apt.py
(pure) has the commands that install CUDA.
"""
