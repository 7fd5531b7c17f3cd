"""A campaign of random networks and of random things that are done with them, each against float64 autograd.

``PYTHONPATH=tests python -m fuzz --seed 1 --budget 60`` runs it; what it finds it shrinks, and prints as a script.
"""
