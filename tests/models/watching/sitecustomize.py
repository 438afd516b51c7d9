"""Notes what a process does that opening a model must not.

Python imports it by itself where its folder is on PYTHONPATH, in processes that are
started by others too. `WATCH_INSIDE` names the folder that may be written,
`WATCH_TRACE` the file of notes, a line each.
"""

import os
import sys

INSIDE = os.path.realpath(os.environ["WATCH_INSIDE"])
_NOTES = os.open(os.environ["WATCH_TRACE"], os.O_RDWR | os.O_APPEND | os.O_CREAT)
# What is installed, this repository, and what the system says of itself.
_ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), *[".."] * 3))
_READ = tuple(
    os.path.realpath(path) for path in (INSIDE, sys.prefix, sys.base_prefix, _ROOT)
) + ("/proc", "/sys", "/dev")
_WRITTEN = (INSIDE, "/dev/null", "/dev/tty", "/dev/shm")
_STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")
_CALLED = (*_STARTED, "pickle.find_class", "socket.connect")
# What changes a path: which of its arguments are paths, and the folders they lie in.
_CHANGES = {
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((1, 3),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}
_LISTED = ("os.listdir", "os.scandir")


def note(what):
    os.write(_NOTES, (what.replace("\n", " ") + "\n").encode())


def noted():
    """What was noted since this was asked last, by all processes."""
    found = os.pread(_NOTES, os.fstat(_NOTES).st_size, 0).decode().splitlines()
    os.ftruncate(_NOTES, 0)
    return found


def _is_in(path, roots):
    if isinstance(path, int) or path is None:  # A file that is open, the own folder.
        return True
    path = os.path.realpath(os.fsdecode(path))
    return any(path == root or path.startswith(root + os.sep) for root in roots)


def watch(event, given):
    if event == "open":
        path, _, flags = given
        writes = isinstance(flags, int) and flags & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        )
        if not _is_in(path, _WRITTEN if writes else _READ):
            note(f"{'writes' if writes else 'reads'} {path}")
    elif event in _CHANGES:
        for path, folder in _CHANGES[event]:
            found = given[path]
            if folder is not None and given[folder] >= 0 and isinstance(found, str):
                found = os.path.join(f"/proc/self/fd/{given[folder]}", found)
            if not _is_in(found, _WRITTEN):
                note(f"{event} {found}")
    elif event in _LISTED and not _is_in(given[0], _READ):
        note(f"{event} {given[0]}")
    elif event == "subprocess.Popen" and given[0] not in (sys.executable, "uname"):
        note(f"starts {given[0]}")
    elif event == "socket.bind" and given[1] != ("::1", 0):  # Tried by urllib3.
        note(f"listens at {given[1]}")
    elif event in _CALLED:
        note(event)


sys.addaudithook(watch)
