"""``python -m mrhdata`` is the command ``mrhdata``."""

from mrhdata.cli import main

if __name__ == "__main__":
    main()
