"""``python -m pyromancy``: what serves each operator on this machine."""

from .backends import describe

if __name__ == "__main__":
    print(describe())
