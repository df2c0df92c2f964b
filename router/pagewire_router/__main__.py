"""python -m pagewire_router."""

from pagewire_router.cli import main

if __name__ == "__main__":
    main()
