"""A small file system of a test's own, which can become full, larger or read-only."""

import subprocess
from pathlib import Path


class SmallDisk:
    """A tmpfs in a mount namespace of its own, seen through the process that holds it.

    Raises OSError if this user may not mount, even as root of a user namespace.
    """

    def __init__(self, folder: Path, kilobytes: int) -> None:
        self._folder = folder
        folder.mkdir()
        self._shell = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self._do(f"mount -t tmpfs -o size={kilobytes}k tmpfs '{folder}'")
        except OSError:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """Its root, for every process of this user."""
        return Path(f"/proc/{self._shell.pid}/root{self._folder}")

    def resize(self, kilobytes: int) -> None:
        """Make it larger or smaller, with what is in it."""
        self._do(f"mount -o remount,size={kilobytes}k '{self._folder}'")

    def read_only(self) -> None:
        """Let nothing more be written."""
        self._do(f"mount -o remount,ro '{self._folder}'")

    def close(self) -> None:
        """Let it go, with all that is in it."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        self._shell.wait()
        self._shell.stdout.close()

    def _do(self, command: str) -> None:
        """One command in the namespace. Raises OSError with what it said if it failed."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        said: list[str] = []
        try:
            self._shell.stdin.write(f"{command} && echo done || echo failed\n")
            self._shell.stdin.flush()
        except BrokenPipeError:
            pass  # the shell ended; what it said is read below
        for line in self._shell.stdout:
            if line in ("done\n", "failed\n"):
                break
            said.append(line.strip())
        else:
            line = "failed\n"
        if line != "done\n":
            raise OSError(f"{command}: {' '.join(said) or 'no namespace of its own'}")
