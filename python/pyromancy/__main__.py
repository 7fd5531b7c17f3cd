"""``python -m pyromancy``: what serves each operator on this machine; ``doctor``; ``bench``."""

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
