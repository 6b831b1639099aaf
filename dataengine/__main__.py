"""`python -m dataengine` is `dataengine`."""

from dataengine.cli import main

if __name__ == "__main__":
    main()
