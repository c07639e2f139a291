"""``python -m keyglue`` is the command line."""

from keyglue.ui.cli import main

if __name__ == "__main__":
    main()
