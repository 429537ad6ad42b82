"""`python -m typicality.cli`, which is what `accelerate launch -m` calls."""

from .app import main

if __name__ == "__main__":
    main()
