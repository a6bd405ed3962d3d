from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmrouter.errors import StoreUnusableError
from llmrouter.stores import _file_system
from llmrouter.stores._file_system import NETWORK_TYPES, file_system_type
from llmrouter.stores.disk import DiskStore

if TYPE_CHECKING:
    from pathlib import Path

MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
40 22 0:50 / /mnt/share rw,relatime shared:9 master:3 - nfs4 server:/export rw,vers=4.2
41 40 0:51 / /mnt/share/local rw,relatime - xfs /dev/vdb rw
42 22 0:52 / /mnt/my\040disk rw,relatime - cifs //server/my\040disk rw
43 22 0:53 / /home/ann/s3 rw,nosuid,nodev - fuse.s3fs s3fs rw
44 22 0:54 / /twice rw - nfs server:/a rw
45 22 0:55 / /twice rw - tmpfs tmpfs rw
46 22 0:56 / /back\134slash rw shared:7 - smb3 //server/x rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/llmrouter", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/queue", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/queue", "xfs"),
        ("/mnt/my disk/queue", "cifs"),
        ("/home/ann/s3/queue", "fuse.s3fs"),
        ("/twice/queue", "tmpfs"),
        ("/back\\slash/queue", "smb3"),
    ],
)
def test_a_path_is_on_the_innermost_mount(path: str, kind: str) -> None:
    """The longest mount point that holds it; of two on one point the later."""
    assert file_system_type(MOUNTS, path) == kind


def test_without_mounts_nobody_can_tell() -> None:
    """An empty or unreadable table says nothing."""
    assert file_system_type("", "/var") is None
    assert file_system_type("nonsense - here\n\n - ", "/var") is None


def test_no_local_file_system_is_refused() -> None:
    """Also those of containers and of memory."""
    local = {
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "tmpfs",
        "overlay",
        "apfs",
        "9p",
        "virtiofs",
        "fuse.mergerfs",
        "f2fs",
    }
    assert NETWORK_TYPES.isdisjoint(local)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "ceph", "lustre"])
def test_a_store_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Before anything is written, with the reason and the way out."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path} rw - {kind} server:/x rw\n")
    monkeypatch.setattr(_file_system, "_MOUNTS", mounts)
    monkeypatch.setattr("sys.platform", "linux")
    folder = tmp_path / "queue"
    with pytest.raises(StoreUnusableError, match=f"network file system .{kind}.*local folder"):
        DiskStore(folder)
    assert not folder.exists()


def test_a_link_into_a_network_file_system_is_seen_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is where the files are."""
    (tmp_path / "share").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "share")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"2 1 0:2 / {tmp_path}/share rw - nfs server:/x rw\n")
    monkeypatch.setattr(_file_system, "_MOUNTS", mounts)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(StoreUnusableError):
        DiskStore(tmp_path / "link" / "queue")
