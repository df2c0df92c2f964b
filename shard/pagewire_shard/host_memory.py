"""How much memory the process may use: the machine's, or less where a control group (a container) limits it."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def memory_limit_bytes(root: Path = CGROUP_ROOT, own_cgroups: Path = OWN_CGROUPS) -> int:
    """The least of the machine's memory and the limits of all control groups above the process, in bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_cgroup_limits(root, own_cgroups)])


def _cgroup_limits(root: Path, own_cgroups: Path) -> Iterator[int]:
    """Limits set by control groups of version 2 (memory.max) and 1 (memory.limit_in_bytes)."""
    for hierarchy, path, file_name in _own_cgroups(root, own_cgroups):
        # Within a container the path may be the host's: the groups that are not there limit nothing.
        for group in (path, *path.parents):
            try:
                yield int((hierarchy / group / file_name).read_text())
            except (OSError, ValueError):  # absent, or "max"
                continue


def _own_cgroups(root: Path, own_cgroups: Path) -> Iterator[tuple[Path, Path, str]]:
    """(hierarchy, the process's group in it, name of the limit's file)."""
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        if number == "0" and not controllers:
            yield root, group, "memory.max"
        elif "memory" in controllers.split(","):
            yield root / "memory", group, "memory.limit_in_bytes"
