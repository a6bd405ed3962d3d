"""Whether a folder lies on a file system that SQLite's locks can be trusted on."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from llmrouter.errors import StoreUnusableError

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")

_NETWORK = """
    afs beegfs ceph cifs coda davfs glusterfs gpfs lustre ncpfs nfs nfs4 orangefs smb2 smb3 smbfs
    fuse.blobfuse2 fuse.ceph fuse.ceph-fuse fuse.davfs fuse.davfs2 fuse.gcsfuse fuse.glusterfs fuse.goofys
    fuse.juicefs fuse.mount-s3 fuse.mountpoint-s3 fuse.rclone fuse.s3fs fuse.sshfs
"""
NETWORK_TYPES = frozenset(_NETWORK.split())
"""Types of file systems that several machines can mount at once, without locks that all of them keep."""


def refuse_network(folder: Path) -> None:
    """Refuses a folder on a network file system, where it can be told: on Linux.

    Raises:
        StoreUnusableError: It is on one.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape")
    except OSError:  # No /proc: then nobody can tell.
        return
    kind = file_system_type(mounts, os.path.realpath(folder))
    if kind in NETWORK_TYPES:
        raise StoreUnusableError(
            f"{folder} is on a network file system ({kind}), where SQLite's locks do not hold and requests"
            " could be lost or paid twice: keep the store in a local folder"
        )


def file_system_type(mounts: str, path: str) -> str | None:
    """The type of the file system that an absolute path is on, or None when no mount point holds it.

    Args:
        mounts: Text in the format of ``/proc/self/mountinfo`` (proc(5)).
        path: Without symbolic links.
    """
    longest, found = "", None
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        # What is mounted later lies above what was mounted on the same point before.
        if len(point) >= len(longest) and _holds(point, path):
            longest, found = point, after.split(" ")[0]
    return found


def _holds(point: str, path: str) -> bool:
    return point in ("/", path) or path.startswith(f"{point}/")
