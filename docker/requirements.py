"""Prints the requirements of the base install and the named extras, from pyproject.toml in the current directory."""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Prints one requirement on each line. Arguments: names of extras."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    requirements = set(project["dependencies"])
    for extra in sys.argv[1:]:
        requirements.update(project["optional-dependencies"][extra])
    print(*sorted(requirements), sep="\n")


if __name__ == "__main__":
    main()
