"""``python -m hranet_arch``: the ``basicsr`` command."""

from hranet_arch.cli import main

if __name__ == "__main__":
    main()
