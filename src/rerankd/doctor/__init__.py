"""`rerankd doctor`: what is missing on this machine, and what would make rerankd faster.

survey.py inspects the machine and asks each backend for its own checks; observations.py is the result;
checks.py (pure) turns it into a status and a next step per line.
"""
